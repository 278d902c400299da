#!/usr/bin/env bash
# A copy of this checkout in DIR with the data path of trainmesh serve compiled: compiled.sh PYTHON DIR.
# A copy, so that no compiled module stands in for an edited source here. Does nothing if DIR has
# the same sources already. Needs a C compiler; takes about a minute and a half.
set -euo pipefail
python=$(realpath -s "$1") dir=$2
cd "$(dirname "$0")/.."
stamp=$(cat setup.py $(git ls-files 'serving/*.py' 'trainmesh/*.py' 'topology/*.py') | sha256sum)
[ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
rm -rf "$dir"
mkdir -p "$dir"
git ls-files -z | tar --null --files-from=- -c | tar -x -C "$dir"
cd "$dir"
TRAINMESH_COMPILE=1 "$python" setup.py --quiet build_ext --inplace
echo "$stamp" > .stamp
