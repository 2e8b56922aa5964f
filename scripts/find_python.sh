#!/usr/bin/env bash
# find_python.sh [3.10]: prints the path of a Python of that version that can make a virtual environment; fails with one
# message where there is none.
# Each candidate is run: a pyenv shim can exist and still answer with 127, a distribution's Python can come without venv.
# The order: $PYTHON, the one on PATH, pyenv, /opt/python (manylinux images), uv's own; at last uv may fetch one.
set -euo pipefail
version=${1:-3.10}

# The interpreter behind a candidate: not a shim, and not the virtual environment that it may lie in.
probe='
import os, platform, sys
import bz2, ctypes, ensurepip, ssl, venv  # what pip and the locked packages need; an own build may lack some
fits = platform.python_version_tuple()[:2] == tuple(sys.argv[1].split(".")) and sys.maxsize > 2**32
fits = fits and platform.python_implementation() == "CPython"
sys.exit(1) if not fits else print(sys.executable if sys.prefix == sys.base_prefix else os.path.realpath(sys.executable))
'

try() {
  local found
  if [ -n "$1" ] && found=$("$1" -I -c "$probe" "$version" 2>/dev/null </dev/null) && [ -n "$found" ]; then
    printf '%s\n' "$found"
    exit 0
  fi
}

try "${PYTHON:-}"
try "python$version"

shopt -s nullglob
pyenv="${PYENV_ROOT:-${HOME:-}/.pyenv}"
for candidate in "$pyenv/versions/$version"*/bin/python /opt/python/cp"${version/./}"*/bin/python; do
  try "$candidate"
done

if command -v uv >/dev/null 2>&1; then
  try "$(uv python find --system "$version" 2>/dev/null || true)"
  echo "No Python $version found: asking uv to fetch one." >&2
  uv python install "$version" >&2 || true
  try "$(uv python find --system "$version" 2>/dev/null || true)"
fi

case $version in
  3.10) system="Ubuntu 22.04" ;;
  3.11) system="Debian 12" ;;
  *) system="if it is there" ;;
esac
cat >&2 <<MESSAGE
onerank needs CPython $version (64 bit, with venv and pip) and found none that runs. Install one of these, then try again:
  apt-get install python$version python$version-venv    ($system)
  pyenv install $version                            (any Linux with a compiler)
  pip install uv                                (uv then fetches Python $version by itself)
or name an interpreter: make PYTHON=/path/to/python$version
MESSAGE
exit 1
