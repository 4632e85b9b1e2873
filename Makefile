# Needs only make and Python 3.11 or newer. Every target sets up .venv by itself, once, and again when pyproject.toml changes.
#   make setup PIP_ARGS="--no-index --find-links wheels"    anything pip should be told (docs/install.md)
#   make setup PYTHON=/path/to/python3.12                   another interpreter

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
EXTRAS  ?= dev,notebooks,eval,train,diffusion
WORKERS ?= 2
PIP_ARGS ?=
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# python3 where it is new enough, else a newer one by name. Each candidate is run, not just looked up: version managers
# leave names on PATH that refuse to start.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p $(NEW_ENOUGH) >/dev/null 2>&1 && echo $$p && break; done)

# One torch thread per test worker: workers would otherwise fight over the cores. tests/conftest.py says what stays
# together in one. SMOKE makes the notebooks short.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg SMOKE=1 $(BIN)/pytest -n $(WORKERS)
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup setup-cpu demo bench bench-accuracy lint format test test-fast clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## create .venv and install pyro_mm with everything the tests need

$(BIN)/python:
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { \
	  echo "make: no Python 3.11 or newer found (PYTHON='$(PYTHON)'). Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One pip call, nothing pinned: torch and torchvision are resolved together. A failing pip stops make before the stamp.
$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) -e '.[$(EXTRAS)]'
	@touch $@

# An extra index would only be a second place to look, and the larger CUDA build could still win. So the pair comes first,
# from PyTorch's CPU index alone; the second call finds it installed and leaves it.
setup-cpu: | $(BIN)/python  ## the same with CPU-only torch and torchvision (Linux: about 4 GB less)
	@test ! -e $(STAMP) || { echo "make: $(VENV) is already set up; run 'make distclean' first" >&2; exit 1; }
	$(BIN)/python -m pip install --index-url $(TORCH_CPU_INDEX) torch torchvision
	$(MAKE) setup

demo: $(STAMP)  ## train, evaluate and plot on real digits, on CPU; results under runs/demo
	$(BIN)/pyro-mm demo

# Beside NumPyro and MultiVae once `.venv/bin/pip install -e '.[bench]'` has brought them. The one that takes long,
# modalities.py, goes on where an interrupted one stopped.
bench: $(STAMP)  ## steps, likelihoods and scaling beside hand-written PyTorch: docs/performance.md (about half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/steps.py --out runs/bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/likelihood_speed.py --out runs/bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py --out runs/bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy.py --out runs/bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/modalities.py --out runs/bench
	$(BIN)/python benchmarks/report.py runs/bench docs/performance.md

bench-accuracy: $(STAMP)  ## what an accuracy of the likelihood costs, on the demo's MVAE (runs the demo first)
	@test -d runs/demo/mvae/model || $(MAKE) demo
	$(BIN)/python benchmarks/likelihoods.py runs/demo/mvae --rows 359

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## everything CI runs: lint, all tests, all notebooks
	$(PYTEST) --nbmake --nbmake-timeout=600 tests $(NOTEBOOKS)

test-fast: $(STAMP)  ## the tests without the slow ones and the notebooks
	$(PYTEST) -m "not slow" tests

clean:  ## remove caches and build output; keep .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pyro_mm tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
