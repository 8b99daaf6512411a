# Needs Python 3.11 or later and nothing else; everything is installed into .venv under your own pip settings.
# The first that runs and is new enough: a name on PATH alone may be a version manager's empty shell.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
RELEASED := protos/released.binpb

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-integration test-conformance test-e2e test-bounds install install-run proto released format lint typecheck buf check ci bench bench-mask bench-grammar bench-dead-ends bench-growth bench-load bench-tracing bench-worker dashboard-check load-check soak-gateway soak-worker bench-cache bench-extract bench-extract-kills bench-extract-million training-data train train-control collapse-demo images deploy-check image-check prometheus-rule run model clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install-run  ## Fetch the model, start everything, extract validated records from real documents, stop
	@$(BIN)/espalier demo

# Tests that share a server stay together in one process.
test: install model  ## Run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-quick: install  ## Run the tests that need neither the model nor more than ten seconds
	@$(BIN)/python -m pytest -m "not slow and not real_model"

test-integration: install  ## Run the tests that start processes
	@$(BIN)/python -m pytest tests/integration

test-conformance: install  ## Run the suites that others wrote
	@$(BIN)/python -m pytest tests/conformance

test-e2e: install model  ## Run the tests with the real model
	@$(BIN)/python -m pytest tests/e2e

# Kernels check no index. A cache of their own, because Numba's does not tell checked code from unchecked.
test-bounds: install  ## Run the core's tests with every array index checked
	@NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=build/kernels-checked $(BIN)/python -m pytest -q \
		tests/property/test_constraint_core.py tests/property/test_masks.py tests/unit/constraint/core

install:  ## Create .venv with all that development needs
	@$(if $(PYTHON),,$(error Espalier needs Python 3.11 or later on PATH, or PYTHON=/path/to/it))$(PYTHON) deploy/install.py dev

install-run:  ## Create .venv with all that running needs
	@$(if $(PYTHON),,$(error Espalier needs Python 3.11 or later on PATH, or PYTHON=/path/to/it))$(PYTHON) deploy/install.py all

proto: install  ## Generate the stubs of protos/ into gen/
	@$(BIN)/python protos/generate.py

released: install buf  ## Take the contract as it is now for the released one, which must not be broken
	@$(BIN)/buf build protos -o $(RELEASED)

format: install  ## Format and sort imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lint: install  ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: install  ## Check types, strictly
	@$(BIN)/mypy

# The comparison is with an image in the repository, so that it works in a shallow clone and without one.
buf: install  ## Lint the contract and check that nothing released breaks
	@$(BIN)/buf lint protos
	@$(BIN)/buf format protos --diff --exit-code
	@$(BIN)/buf breaking protos --against $(RELEASED)

check: lint typecheck buf test-bounds test  ## All that CI runs: lint, types, contract, tests twice for the core

ci:  ## Run CI as its machine does
	@.ci/run

BASE := models/SmolLM2-135M-Instruct.Q4_1.gguf
TRAIN = --base $(BASE) --data build/training --hidden build/hidden --width 96

bench: install model  ## Measure time per token, guided against unguided
	@$(BIN)/python -m tests.bench.guided

bench-mask: install model  ## Measure masks over MaskBench's schemas, beside other engines; flags in ARGS (see tests/bench/masks.py)
	@$(BIN)/python -m tests.bench.masks $(ARGS)

bench-grammar: install model  ## Measure masks of grammars, each language written in several ways, beside other engines; flags in ARGS (see tests/bench/grammars.py)
	@$(BIN)/python -m tests.bench.grammars $(ARGS)

bench-dead-ends: install model  ## Measure dead ends and rollbacks over MaskBench's schemas with a random model; flags in ARGS (see tests/bench/dead_ends.py)
	@$(BIN)/python -m tests.bench.dead_ends $(ARGS)

bench-growth: install model  ## Measure how compile and masks grow with keys, nesting, enum and maxLength; flags in ARGS (see tests/bench/growth.py)
	@$(BIN)/python -m tests.bench.growth $(ARGS)

bench-worker: install model  ## Measure the worker: tokens a second, prefix hits, long prompts beside others, deterministic mode; flags in ARGS (see tests/bench/worker.py)
	@$(BIN)/python -m tests.bench.worker models $(ARGS)

bench-load: install model  ## Measure the memory that loading takes; ARGS="PATH", by default SmolLM2-135M-Instruct
	@$(BIN)/python -m tests.bench.load_memory $(or $(ARGS),$(BASE))

load-check: install  ## Ask two gateways, before two constraint services and two workers, through HAProxy and without; flags in ARGS
	@$(BIN)/python -m tests.bench.load $(ARGS)

soak-gateway: install  ## Ask for 1,000 texts at once, leave a third of them, and check that all else is right; flags in ARGS
	@$(BIN)/python -m tests.bench.soak_gateway $(ARGS)

soak-worker: install  ## Run 64 sequences at once for a while and check that nothing leaks; ARGS="--minutes 10"
	@$(BIN)/python -m tests.bench.soak_worker $(ARGS)

bench-cache: install model  ## Measure the shared cache with real replicas, and break it under load; flags in ARGS (see tests/bench/cache.py)
	@$(BIN)/python -m tests.bench.cache $(ARGS)

bench-extract: install model  ## Measure extraction from real documents, guided and not; flags in ARGS (see tests/bench/extraction.py)
	@$(BIN)/python -m tests.bench.extraction $(ARGS)

bench-extract-kills: install  ## Kill everything under an extraction job, 20 times, and check that each document has one result
	@$(BIN)/python -m tests.bench.extract_kills $(ARGS)

bench-extract-million: install  ## Run an extraction job over a million lines: how soon it begins, how much memory it takes
	@$(BIN)/python -m tests.bench.extract_million $(ARGS)

training-data: install model  ## Write documents to train extraction on and others to judge it by into build/training; flags in DATA_ARGS
	@$(BIN)/python -m gateway.samples.training --model $(BASE) --out build/training $(DATA_ARGS)

train: training-data  ## Train the routed experts anew into build/experts; flags in ARGS, such as --resume
	@$(BIN)/python -m services.model_worker.training train $(TRAIN) --out build/experts $(ARGS)

# Twice 96: the width of the two experts that a token has.
train-control: training-data  ## Train a dense block with as many active parameters in the same way into build/control
	@$(BIN)/python -m services.model_worker.training train $(TRAIN) --experts 1 --per-token 1 \
		--width 192 --out build/control $(ARGS)

collapse-demo: training-data  ## Train twice for a short time, with and without load balancing, and draw what becomes of the experts
	@$(BIN)/python -m tests.bench.collapse $(ARGS)

bench-tracing: install model  ## Measure what traces and removed mass cost a token; flags in ARGS (see tests/bench/tracing.py)
	@$(BIN)/python -m tests.bench.tracing $(ARGS)

dashboard-check: install  ## Ask every query of dashboard and alerts of a real Prometheus (which must be on PATH) beside a running stack
	@$(BIN)/python -m tests.bench.dashboard $(ARGS)

# The first that is there; flags for it in IMAGE_ARGS, such as --build-arg BASE=… and --secret id=pip,src=pip.conf (docs/deploy.md).
BUILDER ?= $(shell command -v docker || command -v podman || command -v buildah)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TAG ?= $(VERSION)
BUILD = $(if $(BUILDER),,$(error Images need docker, podman or buildah on PATH))$(BUILDER) build $(IMAGE_ARGS) \
	--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null)

images: image-gateway image-constraint image-worker image-cli  ## Build the images, with docker, podman or buildah

image-worker-cuda:
	@$(BUILD) --build-arg VARIANT=cuda -f deploy/images/worker.Dockerfile -t espalier-worker-cuda:$(TAG) .

image-%:
	@$(BUILD) -f deploy/images/$*.Dockerfile -t espalier-$*:$(TAG) .

prometheus-rule: install  ## Write the alert rules as the Prometheus operator takes them
	@$(BIN)/python deploy/prometheus_rule.py

deploy-check: install  ## Render, validate and scan all that is in deploy/; needs kubectl
	@$(BIN)/python deploy/check.py

image-check: install  ## Build the images and run them unprivileged, as root with buildah and runc; flags in ARGS (see deploy/check_images.py)
	@PYTHONPATH=.:gen $(BIN)/python deploy/check_images.py $(ARGS)

run: install-run model  ## Start everything until Ctrl-C
	@$(BIN)/espalier up

model: install-run  ## Fetch the demo's model (93 MB) into models/, and put our experts beside it
	@$(BIN)/espalier model fetch

clean:  ## Remove what the targets made, the environment and the model too
	@rm -rf .venv gen build dist models .pytest_cache .mypy_cache .ruff_cache .hypothesis
