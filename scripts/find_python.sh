#!/usr/bin/env bash
# find_python.sh VERSION...: prints the path of a Python of these versions that runs, such as `3.13 3.12`; prints nothing and
# exits with 1 where there is none. One that can make virtual environments and compile extensions is preferred to one that
# lacks something (a distribution's Python may come without venv or headers), an earlier version in the list to a later.
# Each candidate is run: a pyenv shim can exist and still exit with 127. Where none runs, uv is asked to fetch one, if it is
# there and ONERANK_PYTHON_DOWNLOAD is not `no`.
set -euo pipefail

# Prints the interpreter behind a candidate: not a shim, not a link, and not the virtual environment that it may lie in.
probe='
import os, platform, sys, sysconfig
import bz2, ctypes, lzma, sqlite3, ssl  # what pip and the locked packages need; a self-compiled Python may lack some
fits = ".".join(platform.python_version_tuple()[:2]) in sys.argv[2:] and sys.maxsize > 2**32
fits = fits and platform.python_implementation() == "CPython"
if sys.argv[1] == "complete":
    import ensurepip, venv
    fits = fits and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
sys.exit(1) if not fits else print(os.path.realpath(sys.executable))
'

# first_of complete|running VERSION...: prints the first of the candidates that fits, and ends the search.
first_of() {
  local candidate found
  for candidate in "${candidates[@]}"; do
    if found=$("$candidate" -I -c "$probe" "$@" 2>/dev/null </dev/null) && [ -x "$found" ]; then
      printf '%s\n' "$found"
      exit 0
    fi
  done
}

if [ -n "${PYTHON:-}" ]; then
  candidates=("$PYTHON") # it is not replaced by another one
  first_of running "$@"
  exit 1
fi

# The system's, those on PATH, pyenv's, those of manylinux images, uv's own.
shopt -s nullglob
pyenv="${PYENV_ROOT:-${HOME:-}/.pyenv}"
candidates=(/usr/bin/python3)
for version in "$@"; do
  candidates+=("python$version" "$pyenv/versions/$version".*/bin/python /opt/python/cp"${version/./}"-*/bin/python)
  if command -v uv >/dev/null 2>&1 && found=$(uv python find --system "$version" 2>/dev/null); then
    candidates+=("$found")
  fi
done
first_of complete "$@"
first_of running "$@"

if [ "${ONERANK_PYTHON_DOWNLOAD:-}" != no ] && command -v uv >/dev/null 2>&1; then
  echo "No Python $* runs here: uv is asked to fetch Python $1." >&2
  if uv python install "$1" >&2; then
    candidates=("$(uv python find --system "$1")")
    first_of running "$@"
  fi
fi
exit 1
