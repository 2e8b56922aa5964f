#!/usr/bin/env bash
# setup.sh [main | airflow | other]: makes a virtual environment from locked requirements, once. Where the environment is up
# to date it does nothing and prints nothing.
#
#   main      .venv, on the stack that this machine can run: B where glibc is 2.39 or newer, else A
#   airflow   adds Airflow to .venv (stack A alone)
#   other     .venv-other, the libraries of the stack that .venv does not have: B's without TFX beside A, all of A beside B;
#             where no Python for it is installed, one line says so and nothing is made
#
# STACK=a or STACK=b overrides the choice of main, PYTHON=/path/to/python names its interpreter.
# requirements/stack-a.in and stack-b.in say what the stacks are, docs/stacks.md how the choice is made.
set -euo pipefail
# Settings of the caller's other environments, by which Python would start wrongly or pip install elsewhere.
unset CDPATH PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_HASHES UV_REQUIRE_HASHES
export PIP_USER=0
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

readonly GLIBC_OF_B=2.39
readonly PYTHONS_A="3.10" PYTHONS_B="3.13 3.12 3.11"
readonly UV="uv==0.13.9" BUILD=requirements/build-constraints.txt
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2 || true)

main() {
  local stack python why
  exec 9>.setup.lock
  flock 9 # a second set-up waits for the first one
  case ${1:-main} in
    main)
      choose_stack
      make_environment .venv "$stack" "requirements/stack-$stack.lock"
      ;;
    airflow) add_airflow ;;
    other) make_other ;;
    *) fail "setup.sh: main, airflow or other is expected. Received: $1." ;;
  esac
}

# Sets stack, python and why. Where nothing is asked for, what was chosen for .venv stays chosen.
# Fails where the machine has neither stack.
choose_stack() {
  if [ -z "${STACK:-}${PYTHON:-}" ] && is_usable .venv; then
    stack=$(recorded .venv stack) python=$(recorded .venv python) why="as before"
    return
  fi
  why="STACK asks for it"
  case ${STACK:-} in
    a | A)
      stack=a
      find_python "$PYTHONS_A" || fail_without_python a
      ;;
    b | B)
      newer_glibc || fail "stack B needs glibc $GLIBC_OF_B or newer (Debian 13, Ubuntu 24.04). This machine has ${glibc:-none}. Leave STACK out."
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

make_other() {
  local versions
  unset PYTHON # it names the interpreter of .venv
  export ONERANK_PYTHON_DOWNLOAD=no
  if [ "$(recorded .venv stack)" = a ]; then
    stack=b versions=$PYTHONS_B lock=requirements/stack-b-light.lock why="stack B's libraries without TFX, beside stack A"
  else
    stack=a versions=$PYTHONS_A lock=requirements/stack-a.lock why="stack A, beside stack B"
  fi
  if is_usable .venv-other && [ "$(recorded .venv-other stack)" = "$stack" ]; then
    python=$(recorded .venv-other python)
  elif ! find_python "$versions"; then
    rm -rf .venv-other
    echo "No Python ${versions// / or } runs here: stack ${stack^^} is not set up beside the other one, and its tests are left out."
    return
  fi
  make_environment .venv-other "$stack" "$lock"
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

# make_environment FOLDER STACK LOCK: what FOLDER was made of is recorded in FOLDER/.installed. Another place, stack, Python or
# lock: the environment is replaced. Other sources of this package: the package alone is installed again. A record without
# `sources` is an environment that is not finished.
make_environment() {
  local folder=$1 stack=$2 lock=$3 base sources
  base=$(printf '%s\n' "stack $stack" "python $python" "folder $PWD" "lock $(fingerprint "$lock" "$BUILD")")
  sources="sources $(fingerprint pyproject.toml setup.py trainer/ops/cc/*)"
  if is_usable "$folder" && [ "$(cat "$folder/.installed")" = "$base"$'\n'"$sources" ]; then
    return
  fi
  check_tools
  echo "$folder: stack ${stack^^} ($(locked tfx)$(locked tensorflow)$(locked keras)) on $("$python" -V) ($python): $why."
  if ! is_usable "$folder" || [[ "$(cat "$folder/.installed")" != "$base"$'\n'"sources "* ]]; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
    printf '%s\n' "$base" >"$folder/.installed"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$UV"
    install_lock "$folder" "$lock"
  fi
  printf '%s\n' "$base" >"$folder/.installed"
  "$folder/bin/uv" pip install --python "$folder/bin/python" --no-deps --no-build-isolation -e .
  printf '%s\n' "$base" "$sources" >"$folder/.installed"
}

# FOLDER's environment was made in this place, and its Python is still there, in the version that it was made with.
is_usable() {
  [ "$(recorded "$1" folder)" = "$PWD" ] && "$1/bin/python" -I -c 'import pip' 2>/dev/null
}

recorded() { # FOLDER stack|python|folder|lock|sources: as make_environment wrote it, or nothing
  sed -n "s/^$2 //p" "$1/.installed" 2>/dev/null || true
}

locked() { # PACKAGE: its name and version in the lock, or nothing
  local version
  version=$(sed -n "s/^$1\(\[[^]]*\]\)\{0,1\}==\([^ ]*\).*/\2/p" "$lock")
  [ -z "$version" ] || printf '%s %s%s' "$1" "$version" "$([ "$1" = keras ] || echo ', ')"
}

fingerprint() { # FILE...
  cat "$@" | cksum | cut -d ' ' -f 1
}

# install_lock FOLDER LOCK: shows what is downloaded and built, and leaves out the names of 280 packages.
install_lock() {
  "$1/bin/uv" pip install --python "$1/bin/python" --compile-bytecode --require-hashes --build-constraints "$BUILD" -r "$2" \
    2> >(grep --line-buffered -v '^ [-+~] ' >&2)
}

add_airflow() {
  local lock
  if [ "$(recorded .venv stack)" = b ]; then
    echo "Airflow 2.10 is not added: it has no Python 3.13, and its bounds do not fit stack B. The DAG is tested on stack A."
    return
  fi
  lock=$(fingerprint requirements/airflow.lock)
  if [ "$(cat .venv/.airflow 2>/dev/null)" != "$lock" ]; then
    echo ".venv: adds Airflow 2.10."
    install_lock .venv requirements/airflow.lock
    printf '%s\n' "$lock" >.venv/.airflow
  fi
}

# One message for all that is missing: what makes the environment (venv) and what builds pyfarmhash, which comes as source.
check_tools() {
  local missing=() packages=() compiler=${CXX:-g++} part prefix version
  compiler=${compiler##*ccache } # such as CXX="ccache g++"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(venv)
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing+=(dev)
  command -v "${compiler%% *}" >/dev/null 2>&1 || missing+=(g++)
  [ ${#missing[@]} -eq 0 ] && return
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  prefix="python$version"
  [ "$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] && prefix=python3
  for part in "${missing[@]}"; do
    if [ "$part" = g++ ]; then packages+=(g++); else packages+=("$prefix-$part"); fi
  done
  {
    echo "error: $python runs, but this is missing to set up onerank:"
    for part in "${missing[@]}"; do
      case $part in
        venv) echo "  Python's modules venv and ensurepip, which make a virtual environment" ;;
        dev) echo "  Python's headers, which pyfarmhash is compiled with" ;;
        g++) echo "  a C++ compiler ($compiler), which compiles pyfarmhash and onerank's operations" ;;
      esac
    done
    echo "Install it as root, then try again:"
    echo "  apt-get install ${packages[*]}"
  } >&2
  exit 1
}

fail() {
  echo "error: $1" >&2
  exit 1
}

fail_without_python() { # STACK
  local versions=3.10 newest=3.10 system
  [ "$1" = a ] || versions="3.11 to 3.13" newest=3.13
  # shellcheck disable=SC1091
  system=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || true
  {
    if [ -n "${PYTHON:-}" ]; then
      echo "error: PYTHON: a 64-bit CPython $versions that runs is expected for stack ${1^^}. Received: $PYTHON. Leave PYTHON out, or install one:"
    else
      echo "error: stack ${1^^} needs a 64-bit CPython $versions, and none that runs was found. Install one, then try again:"
    fi
    if { [ "$1" = b ] && newer_glibc; } || [ "$1 $system" = "a ubuntu 22.04" ]; then
      echo "  apt-get install python3 python3-venv python3-dev g++    (as root)"
    fi
    echo "  pyenv install $newest    (any Linux with a compiler)"
    echo "  pipx install uv       (uv then fetches Python $newest by itself)"
    echo "or name an interpreter: make setup PYTHON=/path/to/python$newest"
  } >&2
  exit 1
}

main "$@"
