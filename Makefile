# Every target sets up what it needs and does nothing twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STARTER := .cache/starter/.complete
PEERS  := .cache/peers/venv
PORT   ?= 8000

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	@touch $@

$(STARTER): deployments/models/packages.py | $(VENV)/.installed
	$(BIN)/python -m deployments.models.sources
	@touch $@

setup: $(VENV)/.installed $(STARTER) ## Create the virtual environment and fetch the starter models

serve: setup ## Serve on http://127.0.0.1:8000 (PORT=… for another port)
	$(BIN)/sightline serve serve_config.yaml --port $(PORT)

check: $(VENV)/.installed ## Lint, types and import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup check ## Every check and every test
	$(BIN)/python -m pytest

starters: setup ## Train the starter classifiers again (about ten minutes on 2 cores)
	$(BIN)/python -m training.starters

train-smoke: setup ## From a CSV to a served classifier's answers, in under three minutes
	$(BIN)/python -m pytest -q tests/e2e/test_train_smoke.py

bench: setup ## Measurements that run on this machine alone
	$(BIN)/python -m benchmarks.batching

$(PEERS)/.installed: benchmarks/vector_peers/requirements.txt | $(VENV)/.installed
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-index: setup $(PEERS)/.installed ## The vector index beside its peers (240 MB from PyPI once; ARGS=--quick to try)
	$(BIN)/python -m benchmarks.vector_search $(ARGS)

clean: ## Remove what set-up made (never data/)
	rm -rf $(VENV) .cache

.PHONY: help setup serve check test starters train-smoke bench bench-index clean
