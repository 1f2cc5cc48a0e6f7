#!/usr/bin/env bash
# ./launch.sh COMMAND...  runs COMMAND in the project's own virtual environment.
#
# The environment is made when it is missing, half made or was moved, and brought up to date when
# pyproject.toml or constraints.txt have changed or the command needs an extra that is not there.
# Extras once installed stay. Settings, all optional:
#   EXTRAS   comma-separated extras of pyproject.toml, beside those that the command needs;
#            on a GPU: EXTRAS=cuda13, or cuda12 where the driver is older
#   PYTHON   the interpreter that makes the environment, 3.11 or newer (default: python3, or else
#            the newest python3.N that starts)
#   VENV     where the environment lies (default: .venv beside this file)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=${VENV:-$root/.venv}

fail() {
  echo "launch.sh: $1" >&2
  exit 1
}

# "3.N", where an interpreter starts and has these modules; nothing otherwise.
version_of() {
  "$1" -c "import sys, $2; print('%d.%d' % sys.version_info[:2])" 2> /dev/null || true
}

new_enough() { [[ $1 =~ ^3\.[0-9]+$ ]] && ((${1#3.} >= 11)); }

# Sets `python` and its `version`.
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON version=$(version_of "$PYTHON" venv,ensurepip)
    [ -n "$version" ] || fail "PYTHON=$PYTHON does not start, or lacks the module venv"
    new_enough "$version" || fail "PYTHON=$PYTHON is Python $version; 3.11 or newer is needed"
    return
  fi
  for python in python3 $(seq -f 'python3.%g' 30 -1 11); do
    version=$(version_of "$python" venv,ensurepip)
    if new_enough "$version"; then return; fi
  done
  fail "found no Python 3.11 or newer that starts (tried python3 and every python3.N); install one, or name it: PYTHON=/path/to/python ./launch.sh ..."
}

# What a command runs: pytest, mypy, experiments.parity.
name_of() {
  local name=${1##*/} after=${2-}
  shift
  if [[ $name == python* ]]; then
    name=
    while [ $# -gt 0 ]; do
      case $1 in
        -c) break ;;
        -W | -X | --check-hash-based-pycs) shift ;;  # with a value of their own
        -W* | -X* | --*) ;;
        -*m) name=${2-} after=${3-}; break ;;
        -m*) name=${1#-m} after=${2-}; break ;;
        -*) ;;
        *) name=${1%.py}; name=${name#./}; name=${name//\//.}; break ;;
      esac
      shift || break
    done
  fi
  case $name in diffusion-jax | experiments) name=experiments.$after ;; esac
  echo "$name"
}

has() { [[ " $1 " == *" $2 "* ]]; }

# The extras that a command needs on this Python, beside these. The tests compare with PyTorch on
# 3.11 alone: elsewhere it comes as gigabytes of CUDA, and with cuda12 it does not go.
needed() {
  local others=$1
  shift
  case $(name_of "$@") in
    pytest | py.test | experiments.tools.notebooks)
      echo test
      if [ "$version" = 3.11 ] && ! has "$others" cuda12 && ! has "$others" gpu-report; then
        echo torch
      fi ;;
    ruff | mypy) echo test ;;
    experiments.serve) echo serve ;;
    experiments.parity | experiments.convert | experiments.gpu_check) echo torch ;;
    # The earlier names, without tools, work too.
    experiments.tools.benchmark | experiments.benchmark) echo torch ;;
    experiments.tools.regimes_speed | experiments.regimes_speed) echo torch ;;
    experiments.tools.site) echo docs ;;
    experiments.tools.gpu_report | experiments.gpu_report) echo gpu-report ;;
  esac
}

refuse_mixtures() {
  local pair other=cuda12
  if [ "$version" = 3.11 ]; then other=cuda13; fi  # gpu-report compiles for the one or the other
  for pair in "cuda12 cuda13" "cuda12 torch" "gpu-report $other"; do
    if has "$1" "${pair% *}" && has "$1" "${pair#* }"; then
      fail "${pair/ / and } do not go into one environment, for the libraries of CUDA 12 and of CUDA 13 (which PyTorch brings along) lie in the same folders, and $venv would hold both: leave out one of them, or make another environment: VENV=.venv-${pair% *} ./launch.sh ..."
    fi
  done
}

# Sets `version` (empty where the environment is to be made), `have` and `all`, its extras as they
# are and as they shall be. Fails where they cannot be so.
look() {
  have='' version=''
  if [ -e "$venv/pyvenv.cfg" ]; then
    # pip's first lines name the interpreter: another one where the environment was moved.
    if head -n 2 "$venv/bin/pip" 2> /dev/null | grep -qF "$venv/bin/python"; then
      version=$(version_of "$venv/bin/python" pip)
      [ -z "$version" ] || new_enough "$version" ||
        fail "$venv is an environment of Python $version; 3.11 or newer is needed: remove it, or name another with VENV=..."
    fi
  elif [ -e "$venv" ] && { [ ! -d "$venv" ] || [ -n "$(ls -A "$venv")" ]; }; then
    fail "$venv is no virtual environment and not empty; name another folder with VENV=..., or remove it"
  fi
  made=$version
  if [ -n "$made" ]; then have=$(sed -n 2p "$stamp" 2> /dev/null || true); else find_python; fi
  all=$(printf '%s\n' $have $asked $(needed "$have $asked" "$@") | sort -u | paste -sd ' ' -)
  refuse_mixtures "$all"
}

current() { [ -n "$made" ] && [ "$all" = "$have" ] && [ "$(sed -n 1p "$stamp" 2> /dev/null)" = "$inputs" ]; }

install() {
  local extras=${all// /,} time="a minute or two" what="bringing $venv up to date"
  if has "$all" torch || has "$all" cuda12 || has "$all" cuda13; then time="several minutes"; fi
  if [ -z "$made" ]; then what="making $venv with Python $version"; fi
  echo "launch.sh: $what and installing the project${extras:+ with $extras}; it may take $time, and more where downloads are slow" >&2
  if [ -z "$made" ]; then "$python" -m venv --clear "$venv"; fi
  printf '%s\n' unfinished "$have" > "$stamp"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$root${extras:+[$extras]}" >&2 ||
    fail "the installation failed (pip's reason stands above); the same command tries again"
  printf '%s\n' "$inputs" "$all" > "$stamp"
}

if [ $# -eq 0 ]; then
  echo "usage: ./launch.sh COMMAND...   (for example: ./launch.sh python -m experiments.train_lsun --preset sample)" >&2
  exit 2
fi
mkdir -p "$(dirname "$venv")"
venv=$(cd "$(dirname "$venv")" && pwd -P)/$(basename "$venv")
stamp=$venv/.launched  # a checksum of what was installed from, and the extras
inputs=$({ echo "$root"; cat "$root/pyproject.toml" "$root/constraints.txt"; } | cksum)
asked=$(tr ',' ' ' <<< "${EXTRAS-}")
known=$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts/s/^\([a-z0-9-]*\) *=.*/\1/p' "$root/pyproject.toml" | paste -sd ' ' -)
for extra in $asked; do
  has "$known" "$extra" || fail "EXTRAS names '$extra'; there are ${known// /, }"
done
look "$@"
if ! current; then
  # Two commands started together must not install into each other. The lock lies beside the
  # environment, which may be made anew; it goes with the subshell.
  (
    if command -v flock > /dev/null; then
      flock -n 9 || { echo "launch.sh: waiting for another command that installs in $venv" >&2; flock 9; }
    fi
    look "$@"
    current || install
  ) 9> "$venv.lock"
fi

export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
exec "$@"
