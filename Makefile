# `make repro` and `make test` set up what they need: a virtual environment in .venv, made again only if pyproject.toml
# or constraints.txt changed. Set PYTHON to use an interpreter other than python3.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # uv compiles no bytecode, so each start would compile torch again

.PHONY: help env repro test slow check docs figures bench default clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON to one")'
	$(PYTHON) -m venv --clear $(VENV)  # an installation that was cut short cannot be mended
	$(VENV)/bin/python -m tools.install ".[dev]"
	touch $@

env: $(READY) ## Only set up the environment

repro: $(READY) ## Run every stage that changed, from raw files to summary
	python -m tools.check params.yaml
	dvc repro

test: $(READY) ## Run the tests
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(READY) ## Run the tests that take minutes each
	python -m pytest -m slow -s

check: $(READY) docs ## Check format, lint, types, links and workflows
	ruff format --check .
	ruff check .
	mypy
	zizmor --offline --quiet .github

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY) ## Build the pages of docs/ into site/; a broken link fails
	mkdocs build --quiet --strict

figures: $(READY) ## Draw the pictures in README and docs from committed results
	python -m tools.figures

bench: $(READY) ## Measure speed, memory and growth (an hour or two), on the models and rows of `make repro`
	$(VENV)/bin/python -m tools.install ".[bench]"
	python -m benchmarks.scoring
	python -m benchmarks.embedding
	python -m benchmarks.clusters
	python -m benchmarks.growth
	python -m benchmarks.contamination
	python -m benchmarks.duplicates
	python -m benchmarks.selection
	python -m benchmarks.selection diversity

default: $(READY) ## Compose the bundled data again from tools/default
	python -m tools.make_default

clean: ## Remove the environment and caches, but nothing that a stage wrote
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis
