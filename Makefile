# torch-thermo: everything below runs from a fresh clone with Python and make alone.
#
#   make demo PYTHON=python3.12         another interpreter
#   make demo ARGS="--data cifar10"     more options of `torch-thermo demo`
#   make test ARGS="-k lanczos"         more options of pytest

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
ARGS ?=

BIN := $(VENV)/bin
CODE := torch_thermo tests $(wildcard benchmarks) .ci

# Two workers of one thread each: more threads only wait for each other on small tensors.
PYTEST_OPTIONS := -n 2 --timeout 300
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest lint format build clean check-python

help: ## show this list
	@echo "make TARGET, where TARGET is one of"
	@grep -E '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.* ## /\1\t/' \
	  | while IFS="$$(printf '\t')" read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.stamp ## set up .venv, train two networks on real data and measure them
	$(BIN)/torch-thermo demo --out runs/demo $(ARGS)

test: $(VENV)/.stamp ## set up .venv and run all tests, the docstrings' examples too
	$(ONE_THREAD) TORCH_THERMO_TESTS=all $(BIN)/python -m pytest $(PYTEST_OPTIONS) \
	  --doctest-modules torch_thermo tests $(ARGS)

test-oldest: $(OLDEST)/.stamp ## run the tests on the oldest versions that pyproject.toml admits
	$(ONE_THREAD) $(OLDEST)/bin/python -m pytest $(PYTEST_OPTIONS) tests $(ARGS)

lint: $(VENV)/.stamp ## check style, types and the floors of the architecture
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp ## rewrite the code in the project's format
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

build: $(VENV)/.stamp ## build the wheel and the source distribution into dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean: ## remove builds, caches and runs; the environments stay
	rm -rf build dist runs .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find torch_thermo tests $(wildcard benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 comes without ensurepip, and the error of `python3 -m venv` is a page long.
check-python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no '$(PYTHON)' here: install Python 3.10 or newer, or name one: make PYTHON=..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), torch-thermo needs Python 3.10 or newer;" \
	    "name one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments: its modules venv and ensurepip are" \
	    "missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }

# The stamp is written last: an installation that was cut short is taken up again. It depends on
# pyproject.toml, so that new requirements are installed. check-python is order-only: a phony
# prerequisite of the other kind would install anew each time.
$(VENV)/.stamp: pyproject.toml | check-python
	@echo "Setting up $(VENV): PyTorch and its libraries may be several GB."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	$(BIN)/python -m pip install --editable ".[papers,reference,dev]"
	@touch $@

# The lower bounds of the plugin and of the data are held as constraints; the test runner is not
# what is tested. The oracles need newer versions than the plugin and are left out.
$(OLDEST)/.stamp: pyproject.toml .ci/floors.py | check-python
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade "pip>=23"
	$(OLDEST)/bin/python .ci/floors.py papers > $(OLDEST)/constraints.txt
	cat $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --constraint $(OLDEST)/constraints.txt \
	  --editable ".[papers]" lightning hypothesis pytest pytest-timeout pytest-xdist
	@touch $@
