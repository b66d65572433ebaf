# Bare `make` prints what there is. Everything is made in .venv; nothing outside this folder is touched.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := cache/demo
FATIGUE := cache/fatigue
# The demo's encoders are untrained on purpose: it needs no file that is not here.
WEIGHTS := --video-weights random:0 --audio-weights random:0
# Few recordings want more steps per epoch than the defaults give; the same for every head.
DEMO_TRAINING := --epochs 12 --learning-rate 3e-4 --batch-size 16
SEEDS  ?= 0 1 2
# Trainings or tests side by side: on two cores, two of one thread each take half to three quarters of the time of one
# of both.
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo ablation comparison comparison-released fatigue test lint types check clean \
        demo-features fatigue-features features fatigue-store

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  The tables take SEEDS="0 1 2", JOBS=2, OPTIONS="--epochs 30", and CACHE=... for features of your own.'

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "avfuse needs Python 3.11 or newer; say which with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(VENV)/installed ## Make .venv with avfuse and what it needs (about 5 GB, PyTorch's most of it).

demo: demo-features ## Demo corpus, features, four heads by three seeds, and their table.
	$(call grid,demo,$(DEMO_STORE),$(DEMO_TRAINING))

ablation: features ## Table 1 of the paper: recursive joint attention without its parts.
	$(call grid,ablation,$(STORE),$(TRAINING))

comparison: features ## Table 2: every head.
	$(call grid,comparison,$(STORE),$(TRAINING))

comparison-released: features ## Table 2 with the heads as their authors' code has them.
	$(call grid,released --protocol default,$(STORE),$(TRAINING))

fatigue: fatigue-store ## Table 3: five heads on the fatigue corpus.
	$(call grid,fatigue,$(FATIGUE_STORE),$(TRAINING))

# $(call grid,NAME,STORE,TRAINING) trains what is missing and prints the table; OPTIONS come last and win.
grid = @$(BIN)/python tools/train_grid.py $(1) --jobs $(JOBS) --cache $(2) $(SEEDS:%=--seed %) --amp bf16 $(3) $(OPTIONS)
# $(call store,CORPUS) is where its features are: running extract again does nothing but say so.
store = "$$($(BIN)/avfuse -q extract $(1) $(WEIGHTS) --json | $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["store"])')"

ifdef CACHE
features fatigue-store: install
STORE         = "$(CACHE)"
FATIGUE_STORE = "$(CACHE)"
else
features: demo-features
fatigue-store: fatigue-features
STORE         = $(DEMO_STORE)
FATIGUE_STORE = $(call store,$(FATIGUE) $(FATIGUE_CORPUS))
TRAINING      = $(DEMO_TRAINING)
endif
DEMO_STORE     = $(call store,$(DEMO))
FATIGUE_CORPUS = --corpus fatigue --hop 16

demo-features: install
	@$(BIN)/avfuse demo $(DEMO)
	@$(BIN)/avfuse extract $(DEMO) $(WEIGHTS)

fatigue-features: install
	@$(BIN)/avfuse demo $(FATIGUE) --corpus fatigue
	@$(BIN)/avfuse extract $(FATIGUE) $(FATIGUE_CORPUS) $(WEIGHTS)

test: install ## Run the tests, JOBS side by side.
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

lint: install ## Check style and format with ruff.
	$(BIN)/ruff check avfuse tests tools
	$(BIN)/ruff format --check avfuse tests tools

types: install ## Check types with mypy, strictly.
	$(BIN)/mypy

check: lint types test ## All three.

clean: ## Remove .venv and what the tools left; what is in cache/ stays.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
