# Every target has one line of help: `make help`. On a fresh clone python3, a C++20 compiler and make are enough.
# Variables: VENV (environment to use), PYTHON (interpreter it is made from), PRESET (native-test), PYTEST_ARGS, FORM (cluster), LOADERS_FORM.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
PRESET ?= dev
PYTEST_ARGS ?= -n 2 --dist loadfile
FORM ?= short
LOADERS_FORM ?= long
FUZZ_SECONDS ?= 30
FUZZ_SEED ?= 0
FUZZ_RUNS ?= -1
BENCH_ARGS ?= -q -p no:cacheprovider -p no:xdist --benchmark-columns=median,iqr,rounds

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -q -c requirements/constraints.txt
export PATH := $(abspath $(VENV))/bin:$(PATH)

SOURCES := $(shell find src csrc -name '*.[ch]pp' 2>/dev/null) $(shell find . -maxdepth 2 -name CMakeLists.txt -not -path './build/*' 2>/dev/null)

.PHONY: help loaders loaders-table demo gpu-check cluster test native-test asan-python bench bench-quick bench-docs lint wheel wheels docs docs-check faults coverage guards fuzz clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Build tools and torch first, so that building the package needs no isolated environment of its own.
$(VENV)/.tools: requirements/constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy "scikit-build-core>=0.10" "pybind11>=3.0" "cmake>=3.26" ninja
	@touch $@

# Changed native sources are rebuilt in part; changed Python sources need nothing (the install is editable).
$(VENV)/.built: $(VENV)/.tools pyproject.toml $(SOURCES)
	@$(PY) -m pip uninstall -q -y mtf 2> /dev/null  # what was installed before the distribution was called mtf-torch
	@if [ $(VENV)/.installed -nt pyproject.toml ]; then \
	  $(PIP) --no-build-isolation --no-deps -e . ; \
	else \
	  $(PIP) --no-build-isolation -e ".[dev,demo]" && touch $(VENV)/.installed ; \
	fi
	@touch $@

$(VENV)/.bench: $(VENV)/.built
	$(PIP) --no-build-isolation -e ".[bench]"
	@touch $@

# MosaicML Streaming and litdata ask for torchvision, which would replace torch; what they import is in the extra.
$(VENV)/.loaders: $(VENV)/.loaders  ## Resume loaders of 15 other libraries (LOADERS_FORM=short: one interruption each)
	OMP_NUM_THREADS=1 LOADERS_REQUIRED=1 LOADERS_FORM=$(LOADERS_FORM) $(PY) -m pytest tests/loaders $(PYTEST_ARGS)

loaders-table:  ## Write the table of docs/loaders.md anew from the rows in tests/loaders/matrix.py
	$(PYTHON) tests/loaders/matrix.py

coverage: $(VENV)/.built  ## Lines of the core and the package that the tests run; many minutes
	$(PY) scripts/measure_coverage.py --holes

guards: $(VENV)/.built  ## Take the guards of the promises out, one by one, and see their tests fail (docs/guarantees.md)
	$(PY) scripts/check_guards.py

fuzz: $(VENV)/.tools  ## libFuzzer on the native core for FUZZ_SECONDS per target (needs clang)
	scripts/fuzz $(FUZZ_SECONDS) $(FUZZ_SEED) $(FUZZ_RUNS)

clean:  ## Remove everything that was built (the environment stays; rm -r .venv for that)
	rm -rf build dist wheelhouse demo-report docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f python/mtf/_core*.so $(VENV)/.built $(VENV)/.installed
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
