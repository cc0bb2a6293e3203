# Every target sets up what it needs and does nothing twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STARTER := .cache/starter/.complete
INFINITY := .cache/peers/infinity
PEERS := .cache/peers/venv
PORT   ?= 8000

# Byte code is written for what is imported: most of what is installed never is. Without it, every process compiles.
PIP = -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) pip==26.3 # resolves and unpacks in half the time of the one that Python 3.11 brings
	$(BIN)/python $(PIP) -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	@touch $@

$(VENV)/.compiled: $(VENV)/.installed
	$(BIN)/python -W ignore -c 'import serve_app.app, openvino, deployments.engines.conversion, deployments.models.networks.clip'
	@touch $@

$(STARTER): deployments/models/packages.py | $(VENV)/.installed
	$(BIN)/python -m deployments.models.sources
	@touch $@

setup: $(VENV)/.installed $(VENV)/.compiled $(STARTER) ## Create the virtual environment and fetch the starter models

serve: setup ## Serve on http://127.0.0.1:8000 (PORT=… for another port)
	$(BIN)/sightline serve serve_config.yaml --port $(PORT)

check: $(VENV)/.installed ## Lint, types and import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.installed ## Every check and every test
	$(MAKE) -j 3 setup check
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

starters: setup ## Train the starter classifiers again (about ten minutes on 2 cores)
	$(BIN)/python -m training.starters

train-smoke: setup ## From a CSV to a served classifier's answers, in under three minutes
	$(BIN)/python -m pytest -q tests/e2e/test_train_smoke.py

# SECONDS=… of load each; for the others, OPTIONS="--scenarios image-raw,text --clients 1,32 --set clip.precision=fp32"
LONG = $(if $(SECONDS),--seconds $(SECONDS))

bench: setup ## The serving path under load, beside the bare engine (a few minutes)
	$(BIN)/python -m benchmarks.serving $(LONG) $(OPTIONS)

bench-peers: setup $(INFINITY)/.installed ## Requests of the same kinds to infinity as well
	$(BIN)/python -m benchmarks.serving --peer infinity $(LONG) $(OPTIONS)

bench-roof: setup ## The bare engine alone: every layout, batch size and precision
	$(BIN)/python -m benchmarks.roof $(LONG) $(OPTIONS)

bench-batching: setup ## The batch queue against @serve.batch
	$(BIN)/python -m benchmarks.batching $(LONG) $(OPTIONS)

bench-start: setup ## How long a start takes, and the first requests beside those that follow
	$(BIN)/python -m benchmarks.start $(OPTIONS)

crash: setup ## Kill the index under writes fifty times (ROUNDS=… for another number): is anything lost?
	ROUNDS=$(or $(ROUNDS),50) $(BIN)/python -m pytest -q --timeout 3600 tests/faults/test_crash.py

soak: setup ## Half an hour of mixed load (SECONDS=… for another time): does memory grow?
	$(BIN)/python -m benchmarks.soak $(LONG) $(OPTIONS)

# An environment of its own, for it needs other versions of nearly everything.
$(INFINITY)/.installed:
	$(PYTHON) -m venv $(INFINITY)
	$(INFINITY)/bin/python $(PIP) torch==2.13.0
	$(INFINITY)/bin/python $(PIP) "infinity-emb[server,torch,cache,logging]==0.0.78" torch==2.13.0 aiohttp
	@touch $@

$(PEERS)/.installed: benchmarks/vector_peers/requirements.txt | $(VENV)/.installed
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python $(PIP) -r $<
	@touch $@

bench-index: setup $(PEERS)/.installed ## The vector index beside its peers (240 MB from PyPI once; OPTIONS=--quick to try)
	$(BIN)/python -m benchmarks.vector_search $(OPTIONS)

clean: ## Remove what set-up made (never data/)
	rm -rf $(VENV) .cache

.PHONY: help setup serve check test starters train-smoke bench bench-peers bench-roof bench-batching bench-start bench-index crash soak clean
