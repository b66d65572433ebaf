# Bare `make` prints what there is. Everything is made in .venv; nothing outside this folder is touched.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := cache/demo
# The demo's encoders are untrained on purpose: it needs no file that is not here.
WEIGHTS := --video-weights random:0 --audio-weights random:0
# Few recordings want more steps per epoch than the defaults give; the same for every head.
DEMO_TRAINING := --epochs 12 --learning-rate 3e-4 --batch-size 16
SEEDS  ?= 0 1 2

export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types check ablation demo-features clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "avfuse needs Python 3.11 or newer; say which with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(VENV)/installed ## Make .venv with avfuse and what it needs (about 5 GB, PyTorch's most of it).

demo: demo-features ## Demo corpus, features, four heads by three seeds, and their table.
	@$(BIN)/python tools/train_grid.py demo --cache $(DEMO_STORE) --seeds $(SEEDS) $(DEMO_TRAINING)

# Running extract again does nothing but say where the features are.
DEMO_STORE = "$$($(BIN)/avfuse -q extract $(DEMO) $(WEIGHTS) --json | $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["store"])')"

demo-features: install
	@$(BIN)/avfuse demo $(DEMO)
	@$(BIN)/avfuse extract $(DEMO) $(WEIGHTS)

ifdef CACHE
ablation: install ## Table 1 of the paper: seven rows by SEEDS="0 1 2", on the demo's features or CACHE=...
	@$(BIN)/python tools/train_grid.py ablation --cache "$(CACHE)" --seeds $(SEEDS)
else
ablation: demo-features
	@$(BIN)/python tools/train_grid.py ablation --cache $(DEMO_STORE) --seeds $(SEEDS) $(DEMO_TRAINING)
endif

test: install ## Run the tests.
	$(BIN)/python -m pytest

lint: install ## Check style and format with ruff.
	$(BIN)/ruff check avfuse tests tools
	$(BIN)/ruff format --check avfuse tests tools

types: install ## Check types with mypy, strictly.
	$(BIN)/mypy

check: lint types test ## All three.

clean: ## Remove .venv and what the tools left; what is in cache/ stays.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
