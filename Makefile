# Every target has one line of help: `make help`. On a fresh clone python3, a C++20 compiler and make are enough.
# Variables: VENV (environment to use), PYTHON (interpreter it is made from), PRESET (native-test), PYTEST_ARGS, FORM (cluster),
# LOADERS_FORM and LOADERS_ARGS (loaders).
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
PRESET ?= dev
PYTEST_ARGS ?= -n 2 --dist loadfile
FORM ?= short
LOADERS_FORM ?= long
LOADERS_ARGS ?= -n 2 --dist load
FUZZ_SECONDS ?= 30
FUZZ_SEED ?= 0
FUZZ_RUNS ?= -1
BENCH_ARGS ?= -q -p no:cacheprovider -p no:xdist --benchmark-columns=median,iqr,rounds

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -q -c requirements/constraints.txt
export PATH := $(abspath $(VENV))/bin:$(PATH)

SOURCES := $(shell find src csrc -name '*.[ch]pp' -o -name '*.def' 2>/dev/null) $(shell find . -maxdepth 2 -name CMakeLists.txt -not -path './build/*' 2>/dev/null)

.PHONY: help loaders loaders-table demo gpu-check cluster test native-test asan-python stubs tables bench bench-quick bench-docs lint wheel wheels docs docs-check faults coverage guards fuzz clean

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
$(VENV)/.loaders: $(VENV)/.built
	$(PIP) --no-build-isolation -e ".[loaders]"
	$(PIP) --no-deps mosaicml-streaming litdata
	@touch $@

$(VENV)/.docs: $(VENV)/.tools pyproject.toml $(SOURCES)  # without the rest of what developers need
	$(PIP) --no-build-isolation -e ".[docs]"
	@touch $@

$(VENV)/.demo: $(VENV)/.tools pyproject.toml $(SOURCES)  # without what developers need
	$(PIP) --no-build-isolation -e ".[demo]"
	@touch $@

demo: $(VENV)/.demo  ## Train on three real data sets, interrupt, resume, prove bit-identity (about 90 seconds)
	$(PY) examples/demo/demo.py --report demo-report

test: $(VENV)/.built  ## Run the Python tests (PYTEST_ARGS="-k name" to choose)
	OMP_NUM_THREADS=1 $(PY) -m pytest $(PYTEST_ARGS)

gpu-check: $(VENV)/.built  ## Check what only a GPU can show; says so where there is none
	@$(PY) scripts/gpu_check.py || test $$? = 77

cluster: $(VENV)/.built  ## Tests on hosts of their own and a real Slurm (FORM=long: all of them, about an hour); needs root
	PYTHON=$(PY) scripts/cluster $(FORM) -q --durations=5

native-test: $(VENV)/.tools  ## Build and run the C++ tests (PRESET=dev, asan or tsan)
	scripts/native-test $(PRESET)

asan-python: $(VENV)/.built  ## Run the tests of schedules and prefetching with the module under the address sanitizer
	scripts/asan-python

tables:  ## Write what follows from the rows of src/mtf/schedule/options.def
	$(PYTHON) scripts/make_tables.py

stubs: $(VENV)/.built  ## Write python/mtf/_core.pyi anew from the compiled module
	$(PY) scripts/make_stubs.py

lint: $(VENV)/.built  ## ruff, mypy --strict, stubs as the module gives them, clang-format, clang-tidy
	scripts/lint

# A page is made also where a benchmark failed: the others' figures are good.
bench: $(VENV)/.bench build/release/.built  ## All benchmarks against peers and native bounds, with a page and plots
	mkdir -p build/bench/docs
	$(PY) -m pytest benchmarks $(BENCH_ARGS) --benchmark-json=build/bench/run.json; \
	  status=$$?; $(PY) benchmarks/report.py build/bench/run.json --docs build/bench/docs && exit $$status

bench-quick: $(VENV)/.bench build/release/.built  ## The same in a short form, under three minutes
	mkdir -p build/bench/quick
	$(PY) -m pytest benchmarks --quick $(BENCH_ARGS) --benchmark-json=build/bench/quick.json; \
	  status=$$?; $(PY) benchmarks/report.py build/bench/quick.json --docs build/bench/quick && exit $$status

bench-docs: build/bench/run.json  ## Turn the last `make bench` into docs/benchmarks.md
	$(PY) benchmarks/report.py build/bench/run.json --docs docs

build/release/.built: $(VENV)/.tools $(SOURCES) $(wildcard benchmarks/native/*)
	cmake --preset release > build/release.log 2>&1 || { cat build/release.log; exit 1; }
	cmake --build --preset release
	@touch $@

wheel: $(VENV)/.tools  ## Build a wheel into dist/
	$(PY) -m pip wheel -q --no-build-isolation --no-deps -w dist .

wheels:  ## Build _core and run the torch-free tests on every Python from 3.10 to 3.15 that is installed
	scripts/wheels

docs: $(VENV)/.docs  ## Build the documentation into docs/_build (offline, warnings are errors)
	$(PY) -m sphinx -q -W --keep-going docs docs/_build

docs-check: $(VENV)/.built $(VENV)/.docs  ## Run every block of the README and docs/ as it stands; compare pages with sources, messages and tests
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/docs $(PYTEST_ARGS)

faults: $(VENV)/.built  ## Kills, full disks, damaged files: the long form of the fault tests
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/faults $(PYTEST_ARGS)

loaders: $(VENV)/.loaders  ## Resume loaders of 15 other libraries (LOADERS_FORM=short: one interruption each)
	OMP_NUM_THREADS=1 LOADERS_REQUIRED=1 LOADERS_FORM=$(LOADERS_FORM) $(PY) -m pytest tests/loaders $(LOADERS_ARGS)

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
