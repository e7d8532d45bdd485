#!/usr/bin/env bash
# Make .venv from the locked requirements, without resolving, and prepare the embedded model. Run by make.
#   deploy/setup.sh [cpu|gpu]
set -euo pipefail
cd "$(dirname "$0")/.."
flavour=${1:-cpu}
python=""
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then echo "error: Python 3.11 to 3.13 is needed, and none is on the PATH; set PYTHON=/path/to/python" >&2; exit 1; fi

echo "set-up: virtual environment ($("$python" --version), $flavour)"
[ -x .venv/bin/pip ] || "$python" -m venv .venv
.venv/bin/python -m pip install -qq --disable-pip-version-check "uv>=0.9"
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}  # uv does not read pip's settings
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
install() { .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "$@"; }
# The CPU build of torch is either at hand (find-links) or comes from PyTorch's own index, which uv knows.
install -r "deploy/requirements-$flavour.txt" 2>.venv/setup.log \
  || install --torch-backend "$([ "$flavour" = cpu ] && echo cpu || echo auto)" -r "deploy/requirements-$flavour.txt" \
  || { cat .venv/setup.log >&2; exit 1; }
install --editable .
# Ten processes of the first demo would else compile the same libraries while users wait; most of it happens here beside
# the model's conversion, which keeps one core busy.
.venv/bin/python -m compileall -q -j 2 .venv/lib >/dev/null 2>&1 &
.venv/bin/python -m kto_ray.model
wait
cp "deploy/requirements-$flavour.txt" .venv/installed.txt
