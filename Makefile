# Two commands that need only Python and make: `make train` and `make test`. Each makes its own environment first.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test lint types docs unit format clean

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python
INSTALL := $(RUN) -m pip install --disable-pip-version-check --no-input --quiet --quiet --constraint constraints.txt
OPTIMIZER := $(if $(findstring optimizer=,$(ARGS)),,optimizer=fisher_floor)

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1@/p' Makefile | awk -F@ '{printf "%-14s %s\n", $$1, $$2}'
	@echo 'Variables: PYTHON=python3.12  VENV=.venv  WORKERS=2  ARGS="optimizer=godambe problem=mixture"'

train: $(VENV)/.recipes  ## make the environment, then train on real data (ARGS="..." are Hydra overrides)
	$(RUN) recipes/train.py $(OPTIMIZER) $(ARGS)

test: $(VENV)/.test  ## make the environment, then lint, types, docs and the whole test suite
	@$(MAKE) --no-print-directory --keep-going lint types docs unit

lint: $(VENV)/.test  ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.test  ## mypy --strict on the package
	$(RUN) -m mypy

docs: $(VENV)/.test  ## build docs/_build/html, warnings are errors
	$(RUN) -m sphinx -q -W --keep-going -b html docs docs/_build/html

unit: $(VENV)/.test  ## pytest alone (ARGS="-k sink" are pytest's)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

format: $(VENV)/.test  ## let ruff mend what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## remove the environment, caches and the built docs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis docs/_build build dist

# torch first and alone: whatever asks for "torch" afterwards finds the pinned one and never fetches another.
$(VENV)/.recipes: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fisheropt needs Python >= 3.10, $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(RUN) -m pip --version >/dev/null 2>&1 || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch and the recipes into $(VENV)"
	@$(INSTALL) torch hatchling
	@$(INSTALL) --no-build-isolation --editable '.[recipes]'
	@touch $@

$(VENV)/.test: $(VENV)/.recipes
	@echo "installing the test, docs and dev tools into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable '.[recipes,launchers,test,docs,dev]'
	@touch $@
