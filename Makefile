# `make repro` and `make test` do all the set-up they need: a virtual environment in .venv, made again only when
# pyproject.toml or constraints.txt changed. PYTHON names another interpreter than python3.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # uv compiles nothing, so each start would compile torch and its like again

.PHONY: help env repro test slow check docs figures bench default clean
.DEFAULT_GOAL := help

help: ## Say what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one by PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m tools.install ".[dev]"
	touch $@

env: $(READY) ## Set up the environment alone

repro: $(READY) ## Run every stage that changed, raw files to summary
	python -m tools.check params.yaml
	dvc repro

test: $(READY) ## Run the tests
	python -m pytest -n 2 --dist loadfile

slow: $(READY) ## Run the tests that take minutes each
	python -m pytest -m slow -s

check: $(READY) docs ## Format, lint, types and links
	ruff format --check .
	ruff check .
	mypy

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY) ## Build the pages of docs/ into site/; a broken link fails
	mkdocs build --quiet --strict

figures: $(READY) ## Draw the pictures of README and docs from committed figures
	python -m tools.figures

bench: $(READY) ## Measure speed, memory and growth (an hour or two); models and rows of `make repro`
	$(VENV)/bin/python -m tools.install ".[bench]"
	python -m benchmarks.scoring
	python -m benchmarks.embedding
	python -m benchmarks.clusters
	python -m benchmarks.growth
	python -m benchmarks.selection

default: $(READY) ## Compose the bundled data again from tools/default
	python -m tools.make_default

clean: ## Remove the environment and caches, nothing that a stage wrote
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis
