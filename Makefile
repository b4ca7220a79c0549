# Every target does its own set-up: a virtual environment in .venv, with the package in it, compiled.
# Needed: Python 3.11 or later, make; a C compiler (without one everything runs uncompiled, slower).

.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -euc
MAKEFLAGS += --no-print-directory

CC ?= cc
export CC
ONLY ?=
BIN := .venv/bin
READY := .venv/ready
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadgroup $(PYTEST_ARGS)

# What is compiled: the .py beside every .pxd, and every .pyx.
TYPES := $(wildcard src/verbena/*/*.pxd src/verbena/*/*/*.pxd)
COMPILED := $(TYPES) $(wildcard $(TYPES:.pxd=.py)) $(wildcard src/verbena/*/*.pyx) src/verbena/_pure.py

# An environment that was made elsewhere and moved or copied here is made again.
ifneq ($(shell cat .venv/made-for 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1@\2/p' Makefile | while IFS=@ read -r target text; do
	  printf '%-20s %s\n' "$$target" "$$text"
	done

.PHONY: demo
demo: $(READY) ## two processes exchange real data over loopback, and compare checksums
	@$(BIN)/verbena run examples/demo.yaml --time real

.PHONY: test
test: $(READY) lint ## format, lint, types, layers, tests compiled and uncompiled
	@echo "== tests, as installed ($$(cat $(READY)))"
	env -u VERBENA_PURE $(PYTEST)
	echo "== tests, uncompiled (VERBENA_PURE=1)"
	VERBENA_PURE=1 $(PYTEST)

.PHONY: lint
lint: $(READY) ## format, lint, types, layers
	@echo "== ruff"
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	echo "== mypy"
	$(BIN)/python -m mypy
	echo "== import-linter"
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: $(READY) ## format the sources, mend what can be mended
	@$(BIN)/python -m ruff check --fix --exit-zero .
	$(BIN)/python -m ruff format .

.PHONY: bench
bench: $(READY) ## measure, beside a baseline; ONLY=group for one group
	@$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

.PHONY: requirements
requirements: $(READY) ## which test checks which requirement, and which have none
	@$(BIN)/python tools/requirements.py

.PHONY: build
build: $(READY) ## a wheel, in dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	ls dist

.PHONY: setup
setup: $(READY) ## only the virtual environment

.PHONY: clean
clean: ## remove the environment and everything built
	@rm -rf .venv build dist runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis src/*.egg-info
	find src tests tools -name '__pycache__' -prune -exec rm -rf {} +
	find src -name '*.so' -delete

# The first Python that is new enough and can make environments; PYTHON=... chooses another.
$(READY): pyproject.toml setup.py $(COMPILED)
	@python=
	for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python3.14); do
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
	    python=$$candidate
	    if "$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then break; fi
	  fi
	done
	if [ -z "$$python" ]; then
	  echo "Verbena needs Python 3.11 or later, and $(or $(PYTHON),this machine) has none; PYTHON=/path/to/python names one." >&2
	  exit 1
	fi
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
	  echo "$$python cannot make virtual environments: install its venv package (on Debian: apt-get install python3-venv)." >&2
	  exit 1
	fi
	if [ "$$(cat .venv/made-for 2>/dev/null)" != "$(CURDIR)" ]; then
	  echo "setting up .venv with $$("$$python" --version)"
	  "$$python" -m venv --clear .venv
	  echo "$(CURDIR)" >.venv/made-for
	fi
	how=compiled
	headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
	if ! command -v $(firstword $(CC)) >/dev/null 2>&1; then
	  how="uncompiled: there is no C compiler, $(firstword $(CC))"
	elif ! echo '#include <Python.h>' | $(CC) -I"$$headers" -fsyntax-only -x c - >/dev/null 2>&1; then
	  how="uncompiled: $(CC) does not compile, or finds no Python.h (on Debian: apt-get install gcc python3-dev)"
	fi
	if [ "$$how" = compiled ]; then
	  export VERBENA_REQUIRE_EXT=1
	else
	  export VERBENA_NO_EXT=1
	  echo "running $$how; same results, slower" >&2
	fi
	pip="$(BIN)/python -m pip --disable-pip-version-check -qq"
	# Build tools stay, but out of the environment: what is up to date is not compiled again, and tests see no Cython.
	wanted=$$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")')
	if [ "$$(cat .venv/build/requires.txt 2>/dev/null)" != "$$wanted" ]; then
	  rm -rf .venv/build
	  mkdir .venv/build
	  echo "$$wanted" >.venv/build/wanted.txt
	  $$pip install --target .venv/build --requirement .venv/build/wanted.txt
	  mv .venv/build/wanted.txt .venv/build/requires.txt
	fi
	PYTHONPATH="$(CURDIR)/.venv/build" $$pip install --no-build-isolation --editable '.[dev]'
	echo "$$how" >$(READY)
