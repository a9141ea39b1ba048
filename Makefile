# `make demo` and `make test` do all the set-up they need. `make help` lists the rest.
#
# An installation can be steered by pip's own variables. Where the default index would bring the CUDA
# build of PyTorch and the CPU build is wanted, name an index that has it:
#     make demo PIP_EXTRA_INDEX_URL=<index of CPU builds>

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two workers suit two cores; each must then keep to one thread.
WORKERS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

export ORT_DISABLE_TELEMETRY := 1

.PHONY: help install demo test schemas duplicates sbom test-python format format-check lint types pytest wheel-test docs bench adbd lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hetero needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	       "name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 2.5 GB, a few minutes, once"
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY)  ## .venv with everything, versions as in constraints.txt

demo: $(READY)  ## train, export, run, check: the whole chain into runs/demo, with a verdict
	$(BIN)/hetero demo --output runs/demo

test: format-check lint types pytest  ## all that has to pass before a change lands

format: $(READY)  ## rewrite the code in the one style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

pytest: $(READY)  ## the tests alone; ARGS="-k bundle" for some of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# From the sdist, because a wheel built in a used checkout picks up deleted modules from build/.
# Twice, with the commit's time for all files: whoever builds it again gets the same bytes.
wheel-test: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2> /dev/null || echo 1577836800)
wheel-test: $(READY)  ## sdist, wheel from it, twice, empty environment, import of every module
	rm -rf build/dist build/again build/wheel-test
	$(BIN)/python -m build --outdir build/dist .
	mkdir -p build/again/source
	tar -xzf build/dist/*.tar.gz --strip-components=1 -C build/again/source
	$(BIN)/python -m build --wheel --outdir build/again/dist build/again/source
	$(PYTHON) tests/built.py build/dist build/again/dist
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt build/dist/*.whl
	cd build/wheel-test && bin/python -I ../../tests/import_all.py --bare
	cd build/wheel-test && bin/hetero --help > /dev/null
	@echo "wheel-test: passed"

# The tests that need no framework: what a newer Python breaks, it breaks there first.
LIGHT := bundle check evaluate extras history metrics packaging preprocess report retrieval schemas \
	sequential slices space tree verdict verification versions
test-python:  ## the light tests by another interpreter: make test-python PYTHON=python3.13
	rm -rf build/python
	$(PYTHON) -m venv build/python
	build/python/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
	  -e '.[report,fleet]' pytest pytest-xdist hypothesis jsonschema beartype psutil \
	  scikit-learn
	OMP_NUM_THREADS=1 build/python/bin/python -m pytest -q -p no:cacheprovider \
	  $(foreach name,$(LIGHT),$(wildcard tests/test_$(name).py)) $(ARGS)

schemas: $(READY)  ## the published schema of manifest.json, from the types
	$(BIN)/python -c 'from hetero import _files, _manifest; from pathlib import Path; \
	  _files.write_json(Path("hetero/manifest.schema.json"), _manifest.json_schema())'

duplicates:  ## code that stands twice; what stays is in docs/releasing.md
	npx --yes jscpd@4.0.5 --min-lines 8 --min-tokens 70 --format python --reporters console \
	  --ignore 'hetero/export/**,hetero/devices/**' hetero export devices

sbom: $(READY)  ## what is installed with all extras, as CycloneDX: build/dist/hetero.cdx.json
	mkdir -p build/dist
	test -x build/sbom/bin/cyclonedx-py || { $(PYTHON) -m venv build/sbom; \
	  build/sbom/bin/python -m pip install -qq --disable-pip-version-check 'cyclonedx-bom>=7,<8'; }
	sed 's/^dynamic = \["version"\]/version = "'$$($(BIN)/python -c 'import hetero; print(hetero.__version__)')'"/' \
	  pyproject.toml > build/sbom/pyproject.toml
	build/sbom/bin/cyclonedx-py environment --output-reproducible --pyproject build/sbom/pyproject.toml \
	  --output-file build/dist/hetero.cdx.json $(BIN)/python
	@echo "build/dist/hetero.cdx.json"

docs: $(READY)  ## the site, into build/site: no warning, no dead link
	$(BIN)/python docs/make_site.py

bench: $(READY)  ## the benchmarks, about an hour; raw results go to benchmarks/results
	for name in training retrieval throughput startup demo acceptance verdict; do $(BIN)/python -m benchmarks.$$name; done
	for name in faults overhead; do $(BIN)/python -m benchmarks.harness $$name; done
	$(BIN)/python -m benchmarks.verdict --page
	$(BIN)/python -m benchmarks.tables

adbd: $(READY)  ## AOSP's adbd from Debian's source package, under the tests of phones; some minutes
	$(BIN)/python -m benchmarks.harness adbd

# Stripped of local versions (+cpu) and of CUDA's parts, so that it serves every build of PyTorch.
lock: $(READY)  ## resolve all extras at once and write constraints.txt
	$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	mkdir -p build
	{ echo "# Versions that were tested together; written by 'make lock'."; \
	  $(BIN)/uv pip compile --quiet --upgrade --all-extras --no-annotate --no-header pyproject.toml \
	  | sed -E '/^(--|nvidia-|cuda-|triton)/d; s/\+[a-z0-9.]+$$//'; } > build/constraints.tmp
	mv build/constraints.tmp constraints.txt

clean:  ## remove what was built; .venv and runs stay
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
