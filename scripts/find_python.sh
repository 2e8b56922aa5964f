#!/usr/bin/env bash
# Prints the path of a Python 3.10 that can make a virtual environment; fails with one message where there is none.
# Each candidate is run: a pyenv shim can exist and still answer with 127, a distribution's Python can come without venv.
# The order: $PYTHON, python3.10 on PATH, pyenv, /opt/python (manylinux images), uv's own; at last uv may fetch one.
set -euo pipefail

# The interpreter behind a candidate: not a shim, and not the virtual environment that it may lie in.
probe='
import os, platform, sys
import bz2, ctypes, ensurepip, ssl, venv  # what pip and the locked packages need; an own build may lack some
fits = sys.version_info[:2] == (3, 10) and platform.python_implementation() == "CPython" and sys.maxsize > 2**32
sys.exit(1) if not fits else print(sys.executable if sys.prefix == sys.base_prefix else os.path.realpath(sys.executable))
'

try() {
  local found
  if [ -n "$1" ] && found=$("$1" -I -c "$probe" 2>/dev/null </dev/null) && [ -n "$found" ]; then
    printf '%s\n' "$found"
    exit 0
  fi
}

try "${PYTHON:-}"
try python3.10

shopt -s nullglob
for candidate in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.10*/bin/python /opt/python/cp310*/bin/python; do
  try "$candidate"
done

if command -v uv >/dev/null 2>&1; then
  try "$(uv python find --system 3.10 2>/dev/null || true)"
  echo "No Python 3.10 found: asking uv to fetch one." >&2
  uv python install 3.10 >&2 || true
  try "$(uv python find --system 3.10 2>/dev/null || true)"
fi

cat >&2 <<'MESSAGE'
onerank needs CPython 3.10 (64 bit, with venv and pip) and found none that runs. Install one of these, then try again:
  apt-get install python3.10 python3.10-venv    (Ubuntu 22.04)
  pyenv install 3.10                            (any Linux with a compiler)
  pip install uv                                (uv then fetches Python 3.10 by itself)
or name an interpreter: make PYTHON=/path/to/python3.10
MESSAGE
exit 1
