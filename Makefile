# Everything is quoted: the checkout and the environment may lie in a path with spaces.
VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test lint clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16
	@echo
	@echo 'Settings: VENV=folder PYTHON=python3.x DEMO_ARGS="..." PYTEST_ARGS="..."'

env:  ## make or update the virtual environment (.venv, or VENV=folder)
	@"$(PYTHON)" tools/setup_env.py --venv "$(VENV)"

demo: env  ## train and evaluate small models on data that comes with the project
	"$(VENV)/bin/python" tools/demo.py $(DEMO_ARGS)

test: env  ## run the tests
	"$(VENV)/bin/python" -m pytest $(PYTEST_ARGS)

lint: env  ## check style and formatting
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m ruff format --check .

clean:  ## remove what builds and tests leave behind (not the environment)
	rm -rf build dist cvt_dense.egg-info .pytest_cache .ruff_cache .hypothesis
	find cvt_dense tools tests configs -type d -name __pycache__ -prune -exec rm -rf {} +
