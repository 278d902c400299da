#!/usr/bin/env bash
# Make the virtual environment with everything in it: setup.sh PYTHON VENV. Can be repeated.
set -euo pipefail
python=$1 venv=$2

fail() { echo "setup: $1" >&2; exit 1; }
[ -n "$python" ] || fail "no Python 3.11 or newer found; install one, or run make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "$("$python" --version) at $python is too old; install Python 3.11 or newer, or run make PYTHON=/path/to/python3.11"

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing python3-venv"
    apt-get update -qq && apt-get install -y -qq "$(basename "$(readlink -f "$python")")-venv" >/dev/null
  else
    fail "$python has no venv module; install the package python3-venv"
  fi
fi

# Some tests need network namespaces or a C compiler; without them they skip and say why.
missing=()
command -v tc >/dev/null && command -v ip >/dev/null || missing+=(iproute2)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "setup: installing ${missing[*]}"
  { apt-get update -qq && apt-get install -y -qq "${missing[@]}" >/dev/null; } \
    || echo "setup: could not install ${missing[*]}; the tests that need them will skip" >&2
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi
echo "setup: installing trainmesh, torch and the development tools (some minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "pip>=25.1"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt --editable '.[serve,otlp]' --group dev

# Proxies that the router is compared with: unpacked, not installed, so that no server is started.
debian=$venv/debian
if [ ! -e "$debian/usr/sbin/nginx" ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
  if [ "$(id -u)" = 0 ]; then apt-get update -qq || true; fi
  rm -rf "$debian" && mkdir -p "$debian"
  ( cd "$debian"
    apt-get download -qq nginx haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
    for package in ./*.deb; do dpkg -x "$package" .; done
    rm ./*.deb ) >/dev/null 2>&1 \
    || { rm -rf "$debian"; echo "setup: no nginx and HAProxy; the tests that compare with them will skip" >&2; }
fi
"$venv/bin/trainmesh" --version
echo "setup: done; run $venv/bin/trainmesh --help"
