#!/usr/bin/env bash
# Make the virtual environment with everything in it: setup.sh PYTHON VENV [latest]. Can be
# repeated. What is installed is locked in requirements/ (make lock), each file checked against its
# hash; "latest" takes the newest of everything instead. pip's own configuration says from where
# (indexes, proxies, certificates). TORCH_INDEX has torch's CPU builds, where that doesn't.
set -euo pipefail
python=$1 venv=$2 what=${3:-locked}

fail() { echo "setup: $1" >&2; exit 1; }
[ -n "$python" ] || fail "no Python 3.11 or newer found; install one, or run make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "$("$python" --version) at $python is too old; install Python 3.11 or newer, or run make PYTHON=/path/to/python3.11"

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing $package"
    apt-get update -qq && apt-get install -y -qq "$package" >/dev/null
  else
    fail "$python has no venv module; as root: apt-get install -y $package"
  fi
fi
"$python" scripts/system_packages.py

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi
install() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

install_locked() {
  install --require-hashes --requirement requirements/build.txt
  install --require-hashes --no-build-isolation --requirement requirements/dev.txt
  install_torch --require-hashes --no-deps --requirement requirements/torch.txt
  install --no-deps --no-build-isolation --editable .
}

# The CPU build: from the machine's own indexes if they have it, else from PyTorch's.
install_torch() {
  local said
  if said=$(install "$@" 2>&1); then return; fi
  case $said in
    *"No matching distribution found"*) ;;
    *) fail "$said" ;;
  esac
  install --extra-index-url "$TORCH_INDEX" "$@" \
    || fail "no CPU build of torch; name an index that has it: make setup TORCH_INDEX=URL"
}

install_latest() {
  install --upgrade pip  # an old one knows no --group
  install --upgrade --group build
  install --upgrade --index-url "$TORCH_INDEX" torch 2>/dev/null \
    || echo "setup: $TORCH_INDEX has no torch or can't be reached; taking pip's, with CUDA" >&2
  install --upgrade --upgrade-strategy eager --editable '.[all]' --group dev
}

echo "setup: installing trainmesh, torch and the development tools (some minutes the first time)"
"install_$what"
"$venv/bin/python" -m pip check --disable-pip-version-check >/dev/null \
  || fail "$("$venv/bin/python" -m pip check)"

# Proxies that the router is compared with: unpacked, not installed, so that no server is started.
# apt-get keeps its lists in a folder of ours, so this takes no root.
debian=$(realpath "$venv")/debian
fetch_proxies() (
  mkdir -p "$debian/apt/lists/partial" "$debian/apt/archives/partial" && cd "$debian" || return
  apt() { apt-get -qq -o "Dir::State=$PWD/apt" -o "Dir::Cache=$PWD/apt" -o APT::Sandbox::User= "$@"; }
  apt update && apt -o Dir::State::status=/var/lib/dpkg/status download \
    nginx haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 || return
  for package in ./*.deb; do dpkg -x "$package" . || return; done
  rm -r ./*.deb apt
)
if [ ! -e "$debian/usr/sbin/nginx" ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
  rm -rf "$debian"
  if ! said=$(fetch_proxies 2>&1); then
    rm -rf "$debian"
    echo "setup: no nginx and HAProxy (${said##*$'\n'}); the tests that compare with them skip" >&2
  fi
fi
"$venv/bin/trainmesh" --version
echo "setup: done; run $venv/bin/trainmesh --help"
