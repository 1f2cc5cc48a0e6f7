#!/usr/bin/env bash
# ./launch.sh COMMAND...  runs COMMAND in the project's own virtual environment.
#
# The environment (.venv) is made when it is missing, and brought up to date when pyproject.toml,
# constraints.txt or the extras asked for have changed. Settings, all optional:
#   EXTRAS   comma-separated extras of pyproject.toml (default: torch,test); on a GPU: EXTRAS=cuda12
#   PYTHON   the interpreter that makes the environment (default: python3), 3.11 or newer
#   VENV     where the environment lies (default: .venv beside this file)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}
stamp=$venv/.launch

if [ $# -eq 0 ]; then
  echo "usage: ./launch.sh COMMAND...   (for example: ./launch.sh python -m experiments.train_lsun --preset sample)" >&2
  exit 2
fi

install() {
  if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "launch.sh: '$python' is not Python 3.11 or newer; name one with PYTHON=... ./launch.sh ..." >&2
      exit 1
    }
    echo "launch.sh: making the virtual environment $venv" >&2
    "$python" -m venv "$venv"
  fi
  # Extras once installed stay, so that alternating EXTRAS does not install again and again.
  local all
  all=$(printf '%s\n' "$(sed -n 2p "$stamp" 2>/dev/null)" "${EXTRAS-torch,test}" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -)
  echo "launch.sh: installing the project${all:+ with extras $all}; the first time takes some minutes" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$root${all:+[$all]}" >&2
  printf '%s\n%s\n' "$inputs" "$all" > "$stamp"
}

current() {
  [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$inputs" ] || return 1
  local have extra
  have=,$(sed -n 2p "$stamp"),
  for extra in $(tr ',' ' ' <<< "${EXTRAS-torch,test}"); do
    [[ $have == *",$extra,"* ]] || return 1
  done
}

inputs=$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)
if ! current; then
  mkdir -p "$venv"
  # Two commands started together must not install into each other; the lock goes with the subshell.
  (
    if command -v flock > /dev/null; then flock 9; fi
    current || install
  ) 9> "$venv/.lock"
fi

export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
exec "$@"
