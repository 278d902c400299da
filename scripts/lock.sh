#!/usr/bin/env bash
# Lock the newest versions that pyproject.toml allows, with the hashes of all their files, in
# requirements/: lock.sh UV. TORCH_INDEX is the index with torch's CPU builds.
set -euo pipefail
uv=$1
cd "$(dirname "$0")/.."
torch=$(sed -n 's/^constraint-dependencies = \["torch==\(.*\)"\]$/\1/p' pyproject.toml)
[ -n "$torch" ] || { echo "lock: no torch==VERSION in constraint-dependencies of pyproject.toml" >&2; exit 1; }

# The oldest Python; --universal adds what newer ones need by markers.
compile() {
  "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
    --no-annotate --custom-compile-command "make lock" "$@"
}

compile pyproject.toml --extra all --group dev --no-emit-package torch \
  --output-file requirements/dev.txt
compile --group build --constraint requirements/dev.txt --output-file requirements/build.txt
if ! echo "torch==$torch+cpu" | compile - --no-deps --default-index "$TORCH_INDEX" \
  --output-file requirements/torch.txt; then
  grep -q "^torch==$torch+cpu " requirements/torch.txt \
    || { echo "lock: $TORCH_INDEX has no torch $torch+cpu, or can't be reached" >&2; exit 1; }
  echo "lock: $TORCH_INDEX can't be reached; requirements/torch.txt stays, it has that version" >&2
fi
