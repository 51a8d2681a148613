# Everything is quoted: the checkout and the environment may lie in a path with spaces.
VENV ?= .venv
VENV_OPENMMLAB ?= .venv-openmmlab
VENV_CLIENTS ?= .venv-clients
VENV_APP ?= .venv-app
PYTHON ?= python3
PYTEST_ARGS ?=
# Processes that share the tests, each with one thread; a process takes up to 4 GB.
TEST_JOBS ?= 2
PYTEST = -m pytest -n $(TEST_JOBS) --dist worksteal
DEMO_ARGS ?=
LOCK_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env env-openmmlab env-clients lock demo test test-openmmlab test-openmmlab-core test-clients test-app lint clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 28
	@echo
	@echo 'Settings: VENV=folder VENV_OPENMMLAB=folder VENV_CLIENTS=folder VENV_APP=folder PYTHON=python3.x LOCK_ARGS=--upgrade DEMO_ARGS="..." PYTEST_ARGS="..." TEST_JOBS=2'

env:  ## make or update the virtual environment (.venv, or VENV=folder)
	@bash tools/make_env.sh "$(VENV)" onedl "$(PYTHON)"

env-openmmlab:  ## the same with upstream OpenMMLab and the oldest torch (.venv-openmmlab)
	@bash tools/make_env.sh "$(VENV_OPENMMLAB)" openmmlab "$(PYTHON)"

env-clients:  ## the same with packages that take these models, to test that they do (.venv-clients)
	@bash tools/make_env.sh "$(VENV_CLIENTS)" clients "$(PYTHON)"

lock: env  ## compile the pins of requirements/*.txt from *.in and pyproject.toml
	@bash tools/make_env.sh "$(VENV)" lock "$(PYTHON)" $(LOCK_ARGS)

demo: env  ## train and evaluate small models on data that comes with the project
	"$(VENV)/bin/python" tools/demo.py $(DEMO_ARGS)

test: env  ## run the tests
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" $(PYTEST) $(PYTEST_ARGS)

# What a toolkit or torch of another version breaks first: the operator, its compilation, configs, checkpoints, runs.
# Less what takes minutes and says nothing new: gradients through a compiled model, and the largest variant.
CORE = tests/models/cvt/test_trunk.py tests/backbones/test_cvt.py tests/checkpoints/test_load.py tests/engine/test_launch.py \
	tests/checkpoints/test_unpickling.py tests/engine/test_resume.py tests/engine/test_layer_decay.py tests/engine/test_precision.py \
	'tests/test_configs.py::test_a_detector_trains_and_predicts[maskrcnn_cvt13_fpn_coco]' \
	'tests/test_configs.py::test_a_detector_trains_and_predicts[dino_cvt13_coco]' \
	'tests/test_configs.py::test_a_segmentor_trains_and_predicts[mask2former_cvt13_ade20k]' \
	tests/tools/test_train.py::test_a_detector_trains_is_killed_resumes_and_is_tested \
	tests/tools/test_train.py::test_a_segmentor_trains_is_killed_resumes_and_is_tested \
	-k 'not compiled_gradients and not w24'

test-openmmlab: env-openmmlab  ## run the tests with upstream OpenMMLab and the oldest torch
	OMP_NUM_THREADS=1 "$(VENV_OPENMMLAB)/bin/python" $(PYTEST) $(PYTEST_ARGS)

test-openmmlab-core: env-openmmlab  ## of these, those that another version breaks first
	OMP_NUM_THREADS=1 "$(VENV_OPENMMLAB)/bin/python" $(PYTEST) $(CORE) $(PYTEST_ARGS)

test-clients: env-clients  ## run the tests of packages that take these models
	OMP_NUM_THREADS=1 "$(VENV_CLIENTS)/bin/python" -m pytest tests/test_integrations.py tests/clients $(PYTEST_ARGS)

test-app:  ## test the page of tools/app.py in Chromium, in an environment of its own (.venv-app)
	@bash tools/make_env.sh "$(VENV_APP)" onedl "$(PYTHON)"
	"$(VENV_APP)/bin/uv" pip install --quiet -p "$(VENV_APP)/bin/python" -r requirements/app.txt
	OMP_NUM_THREADS=1 "$(VENV_APP)/bin/python" -m pytest tests/browser $(PYTEST_ARGS)

lint: env  ## check style and formatting
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m ruff format --check .

clean:  ## remove what builds and tests leave behind (not the environment)
	rm -rf build dist cvt_dense.egg-info .pytest_cache .ruff_cache .hypothesis
	find cvt_dense tools tests configs -type d -name __pycache__ -prune -exec rm -rf {} +
