#!/usr/bin/env bash
# Make .venv from the locked requirements, without resolving, and prepare the embedded model. Run by make.
#   deploy/setup.sh [cpu|gpu]
# What was set up already is left as it is. A set-up that was cut off begins anew; what it downloaded is in uv's cache.
set -euo pipefail
cd "$(dirname "$0")/.."
flavour=${1:-cpu}
requirements=deploy/requirements-$flavour.txt
[ -f "$requirements" ] || { echo "error: FLAVOUR is '$flavour'; use cpu or gpu" >&2; exit 1; }
state="$flavour $(cat "$requirements" pyproject.toml deploy/setup.sh | sha256sum | cut -c1-16)"
exec 9<deploy  # one set-up at a time; its children hold the lock too, should it be killed
flock -n 9 || { echo "another set-up is at work; waiting for it"; flock 9; }
# Neither moved nor without its Python.
sound() { [ "$(cat .venv/place.txt 2>/dev/null)" = "$PWD" ] && .venv/bin/python -c '' 2>/dev/null; }
if [ "$(cat .venv/installed.txt 2>/dev/null)" = "$state" ] && sound; then exit 0; fi

python=""
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then echo "error: Python 3.11 to 3.13 is needed, and none is on the PATH; set PYTHON=/path/to/python" >&2; exit 1; fi
"$python" -m kto_ray.preflight "$flavour"

log=$(mktemp) work=""
trap '[ -z "$work" ] || kill -- -"$work" 2>/dev/null; rm -f "$log"' EXIT
trap 'printf "\nset-up was cut off; run it again\n" >&2; exit 130' INT TERM
# Run a step: one line with its time; on a terminal the line moves, and tells what the command `shown` says of it.
step() {
  local name=$1 shown=$2 began=$SECONDS code=0; shift 2
  set -m  # a process group of its own, so that all of it can be ended
  "$@" </dev/null >>"$log" 2>&1 &
  work=$!
  set +m
  if [ -t 1 ]; then
    while kill -0 $work 2>/dev/null; do
      printf '\r\033[K  %s: %d s%s' "$name" $((SECONDS - began)) "$($shown)"
      sleep 0.5
    done
    printf '\r\033[K'
  fi
  wait $work || code=$?
  work=""
  if [ $code != 0 ]; then
    printf '\nerror: set-up failed at: %s\n' "$name" >&2; tail -n 30 "$log" >&2; exit $code
  fi
  echo "  $name: $((SECONDS - began)) s"
}

installed() { echo ", $(find .venv/lib -maxdepth 3 -name '*.dist-info' 2>/dev/null | wc -l) of $(wc -l <"$requirements")"; }
environment() {
  if [ -e .venv/unfinished ] || ! sound; then rm -rf .venv; fi
  mkdir -p .venv && touch .venv/unfinished && echo "$PWD" >.venv/place.txt && rm -f .venv/installed.txt
  [ -x .venv/bin/pip ] || "$python" -m venv .venv
  .venv/bin/python -m pip install -qq --disable-pip-version-check "uv>=0.9"
}
packages() {
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}  # uv does not read pip's settings
  [ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
  local install=(.venv/bin/uv pip install --python .venv/bin/python --no-deps)
  # The CPU build of torch is either at hand (find-links) or comes from PyTorch's own index, which uv knows.
  "${install[@]}" -r "$requirements" \
    || "${install[@]}" --torch-backend "$([ "$flavour" = cpu ] && echo cpu || echo auto)" -r "$requirements"
  "${install[@]}" --editable .
}
# Ten processes of the first demo would else compile the same libraries while users wait; most of it happens beside the
# model's conversion, which keeps one core busy. A fifth is never imported: tests, and models that are not the user's.
model() {
  .venv/bin/python -m compileall -q -j 2 -x '/tests?/|/transformers/models/.*/mod(eling|ular)_' .venv/lib >/dev/null 2>&1 &
  .venv/bin/python -m kto_ray.model
  wait
}

echo "set-up, once ($("$python" --version), $flavour, $(wc -l <"$requirements") packages)"
step "virtual environment" : environment
step "packages" installed packages
step "embedded model and bytecode" : model
rm -f .venv/unfinished
echo "$state" >.venv/installed.txt
