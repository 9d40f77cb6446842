# `make repro` and `make test` do all the set-up they need: a virtual environment in .venv, made again only when
# pyproject.toml or constraints.txt changed. PYTHON names another interpreter than python3.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help env repro test check default clean
.DEFAULT_GOAL := help

help: ## Say what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one by PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

env: $(READY) ## Set up the environment alone

repro: $(READY) ## Run every stage that changed, raw files to summary
	python -m tools.check params.yaml
	dvc repro

test: $(READY) ## Run the tests
	python -m pytest

check: $(READY) ## Format, lint and types
	ruff format --check .
	ruff check .
	mypy

default: $(READY) ## Compose the bundled data again from tools/default
	python -m tools.make_default

clean: ## Remove the environment and caches, nothing that a stage wrote
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
