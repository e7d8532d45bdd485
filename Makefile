# make demo [TASTE=short|name|question|noise]   the whole loop, on this machine
# make test                                     style, types, unit and integration tests (the manifests among them)
# make slow, make fault                         more training runs, kills and requests; kill -9 of everything in mid-loop
# make soak [MINUTES=30]                        used for long, by clients who leave, stall and give up: nothing grows
# make bench [DATA=file]                        all benchmarks into runs/bench; hours on two cores, and it can be cut off
# make setup FLAVOUR=gpu                        the same environment for CUDA machines

FLAVOUR ?= cpu
TASTE ?= short
MINUTES ?= 30
DATA ?= ../shared/data/human_thumbs.jsonl.gz
PYTEST := .venv/bin/python -m pytest
# Progress bars of libraries, telemetry and model hubs have no place in runs that need none of them.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1

.PHONY: setup demo test lint unit integration slow fault soak gpu bench docs k8s-check lock clean

setup:
	@deploy/setup.sh $(FLAVOUR)

demo: setup
	@.venv/bin/kto-ray demo --taste $(TASTE) $(ARGS)

test: lint unit integration

lint: setup
	.venv/bin/ruff check kto_ray tests deploy
	.venv/bin/ruff format --check kto_ray tests deploy
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

unit: setup
	$(PYTEST) -n 2 --dist worksteal tests/unit tests/api tests/manifests -q --durations=10 -m "not slow"

integration: setup
	$(PYTEST) tests/integration -q --durations=10 -m "not slow"

slow: setup
	$(PYTEST) tests/unit tests/integration tests/api -q --durations=10 -m slow

fault: setup
	$(PYTEST) tests/fault -q --durations=10

soak: setup
	SOAK_MINUTES=$(MINUTES) $(PYTEST) tests/fault/test_soak.py -q -s

gpu: setup
	$(PYTEST) tests/gpu -q

bench: setup
	.venv/bin/kto-ray bench train --data $(DATA)
	.venv/bin/kto-ray bench data
	.venv/bin/kto-ray bench learn --data $(DATA)
	.venv/bin/kto-ray bench ablation --data $(DATA)
	.venv/bin/kto-ray bench edits
	.venv/bin/kto-ray bench rounds
	.venv/bin/kto-ray bench engine
	.venv/bin/kto-ray bench serve
	.venv/bin/kto-ray bench swap
	.venv/bin/kto-ray bench peeking
	.venv/bin/kto-ray bench decisions
	.venv/bin/kto-ray bench gate
	.venv/bin/kto-ray bench loop
	.venv/bin/kto-ray bench chat
	.venv/bin/kto-ray bench live
	.venv/bin/kto-ray bench ingest
	.venv/bin/kto-ray bench scale --set home=runs/scale

k8s-check: setup
	@.venv/bin/python deploy/k8s_check.py

# What the docs say of the code, made from the code.
docs: setup
	.venv/bin/python deploy/docs.py

# The locks, made anew from pyproject.toml; the CPU one holds the CPU build of torch. Then the environment, from whose
# metadata those of the image are made.
lock: setup
	for flavour in cpu gpu; do \
	  .venv/bin/uv pip compile -q --no-header --no-annotate pyproject.toml --extra $$flavour --extra s3 --extra dev \
	    --override deploy/overrides-$$flavour.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    -o deploy/requirements-$$flavour.txt; \
	done
	@deploy/setup.sh cpu
	.venv/bin/python deploy/image_lock.py

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
