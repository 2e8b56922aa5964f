#!/usr/bin/env bash
# setup.sh [main | airflow | other]: makes a virtual environment from locked requirements, once; it does nothing and says
# nothing where the environment is up to date.
#
#   main      .venv, on the stack that this machine can run: B where glibc is 2.39 or newer, else A
#   airflow   adds Airflow to .venv (stack A alone)
#   other     .venv-other, the libraries of the other stack: B's without TFX beside A, A's beside B if there is a Python 3.10
#
# STACK=a or STACK=b overrides the choice, PYTHON=/path/to/python names the interpreter.
# requirements/stack-a.in and stack-b.in say what the stacks are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly GLIBC_OF_B=2.39
readonly PYTHONS_A="3.10" PYTHONS_B="3.13 3.12 3.11"
readonly UV="uv==0.13.9" BUILD=requirements/build-constraints.txt
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2 || true)

main() {
  local stack python why
  case ${1:-main} in
    main)
      choose_stack
      make_environment .venv "$stack" "requirements/stack-$stack.lock"
      ;;
    airflow) add_airflow ;;
    other)
      if [ "$(made_of .venv stack)" = a ]; then
        find_python "$PYTHONS_B" || fail_without_python b
        why="stack B's libraries without TFX, beside stack A"
        make_environment .venv-other b requirements/newest.lock
      elif find_python "$PYTHONS_A"; then
        why="stack A, beside stack B"
        make_environment .venv-other a requirements/stack-a.lock
      else
        echo "There is no Python 3.10 here: stack A is not set up beside stack B."
      fi
      ;;
    *) fail "setup.sh: main, airflow or other is expected. Received: $1." ;;
  esac
}

# Sets stack, python and why. Where nothing is asked for, what was chosen for a working .venv stays chosen.
# Fails where the machine has neither stack.
choose_stack() {
  if [ -z "${STACK:-}${PYTHON:-}" ] && works .venv; then
    stack=$(made_of .venv stack) python=$(made_of .venv python) why="as before"
    return
  fi
  why="STACK asks for it"
  case ${STACK:-} in
    a | A)
      stack=a
      find_python "$PYTHONS_A" || fail_without_python a
      ;;
    b | B)
      newer_glibc || fail "stack B needs glibc $GLIBC_OF_B or newer (Debian 13, Ubuntu 24.04). This machine has ${glibc:-none}. Leave STACK out: stack A runs here."
      stack=b
      find_python "$PYTHONS_B" || fail_without_python b
      ;;
    "")
      if ! newer_glibc; then
        stack=a why="glibc is ${glibc:-unknown}, stack B needs $GLIBC_OF_B"
        find_python "$PYTHONS_A" || fail_without_python a
      elif find_python "$PYTHONS_B"; then
        stack=b why="glibc is $glibc, stack B needs $GLIBC_OF_B"
      elif find_python "$PYTHONS_A"; then
        stack=a why="stack B needs Python 3.11 to 3.13, and there is none that runs"
      else
        fail_without_python b
      fi
      [ -z "${PYTHON:-}" ] || why="PYTHON asks for it"
      ;;
    *) fail "STACK: a or b is expected. Received: $STACK." ;;
  esac
}

newer_glibc() {
  [ -n "$glibc" ] && [ "$(printf '%s\n' "$GLIBC_OF_B" "$glibc" | sort -V | head -n 1)" = "$GLIBC_OF_B" ]
}

# Sets python; it stays empty where no Python of these versions runs.
find_python() { # "VERSION ..."
  # shellcheck disable=SC2086  # a list of versions
  python=$(scripts/find_python.sh $1 || true)
  [ -n "$python" ]
}

# make_environment FOLDER STACK LOCK: an environment of this folder, stack and Python is brought up to date; any other, and
# one that is half made or moved, is replaced. What it is made of is written last, to FOLDER/.installed.
make_environment() {
  local folder=$1 stack=$2 lock=$3 made
  made=$(printf '%s\n' "stack $stack" "python $python" "folder $PWD" "content $(content "$lock")")
  if works "$folder" && [ "$made" = "$(cat "$folder/.installed")" ]; then
    return
  fi
  check_tools
  echo "$folder: stack ${stack^^} ($(version tfx)$(version tensorflow)$(version keras)) on $("$python" -V) ($python): $why."
  if ! works "$folder" || [ "$(made_of "$folder" stack) $(made_of "$folder" python)" != "$stack $python" ]; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
  fi
  rm -f "$folder/.installed"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$UV"
  install "$folder" "$lock"
  "$folder/bin/uv" pip install --python "$folder/bin/python" --no-deps --no-build-isolation -e .
  printf '%s\n' "$made" >"$folder/.installed"
}

# FOLDER's environment is whole, was made in this place, and its Python is still there.
works() {
  [ "$(made_of "$1" folder)" = "$PWD" ] && "$1/bin/python" -c '' 2>/dev/null
}

made_of() { # FOLDER stack|python|folder|content: as make_environment wrote it, or nothing
  sed -n "s/^$2 //p" "$1/.installed" 2>/dev/null || true
}

version() { # PACKAGE: as the lock has it, or nothing
  local found
  found=$(sed -n "s/^$1\(\[[^]]*\]\)\{0,1\}==\([^ ]*\).*/\2/p" "$lock")
  [ -z "$found" ] || printf '%s %s%s' "$1" "$found" "$([ "$1" = keras ] || echo ', ')"
}

# What an environment is made of: when it changes, the environment is made anew.
content() { # LOCK
  cat "$1" "$BUILD" pyproject.toml setup.py trainer/ops/cc/* scripts/setup.sh | cksum | cut -d ' ' -f 1
}

# install FOLDER LOCK: shows what is downloaded and built; the names of 280 packages are no news.
install() {
  "$1/bin/uv" pip install --python "$1/bin/python" --compile-bytecode --require-hashes --build-constraints "$BUILD" -r "$2" \
    2> >(grep --line-buffered -v '^ [-+~] ' >&2)
}

add_airflow() {
  local stamp
  if [ "$(made_of .venv stack)" = b ]; then
    echo "Airflow 2.10 is not added: it has no Python 3.13, and its bounds do not fit stack B. The DAG is tested on stack A (STACK=a)."
    return
  fi
  stamp=$(content requirements/airflow.lock)
  if [ "$(cat .venv/.airflow 2>/dev/null)" != "$stamp" ]; then
    echo ".venv: adds Airflow 2.10."
    install .venv requirements/airflow.lock
    printf '%s\n' "$stamp" >.venv/.airflow
  fi
}

# One message for all that is missing: what makes the environment (venv) and what builds pyfarmhash, which comes as source.
check_tools() {
  local missing=() version packages=() of
  "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(venv)
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing+=(dev)
  command -v "${CXX:-g++}" >/dev/null 2>&1 || missing+=(g++)
  [ ${#missing[@]} -eq 0 ] && return
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  of="python$version"
  [ "$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] && of=python3
  for part in "${missing[@]}"; do
    if [ "$part" = g++ ]; then packages+=(g++); else packages+=("$of-$part"); fi
  done
  {
    echo "error: $python runs, but this is missing to set up onerank:"
    for part in "${missing[@]}"; do
      case $part in
        venv) echo "  Python's modules venv and ensurepip, which make a virtual environment" ;;
        dev) echo "  Python's headers, which pyfarmhash is compiled with" ;;
        g++) echo "  a C++ compiler (${CXX:-g++}), which compiles pyfarmhash and onerank's operations" ;;
      esac
    done
    echo "Install it, then try again:"
    echo "  apt-get install ${packages[*]}"
  } >&2
  exit 1
}

fail() {
  echo "error: $1" >&2
  exit 1
}

fail_without_python() { # STACK
  local versions=$PYTHONS_A newest system
  [ "$1" = a ] || versions=$PYTHONS_B
  newest=${versions%% *}
  # shellcheck disable=SC1091
  system=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || true
  {
    if [ -n "${PYTHON:-}" ]; then
      echo "error: PYTHON: a 64-bit CPython ${versions// / or } that runs is expected for stack ${1^^}. Received: $PYTHON. Leave it out, or install one:"
    else
      echo "error: stack ${1^^} needs a 64-bit CPython ${versions// / or }, and none that runs was found. Install one, then try again:"
    fi
    if { [ "$1" = b ] && newer_glibc; } || [ "$1 $system" = "a ubuntu 22.04" ]; then
      echo "  apt-get install python3 python3-venv python3-dev g++"
    fi
    echo "  pyenv install $newest    (any Linux with a compiler)"
    echo "  pip install uv        (uv then fetches Python $newest by itself)"
    echo "or name an interpreter: make setup PYTHON=/path/to/python$newest"
  } >&2
  exit 1
}

main "$@"
