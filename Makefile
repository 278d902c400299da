# make demo and make test are all a newcomer needs; each sets up what it uses.
# The first Python that really runs and is new enough.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
# An index with torch's CPU builds; asked only if pip's own configuration has none.
export TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.PHONY: help setup lock demo quick test test-latest test-compiled compat check bench bench-serve fault soak clean

help:
	@echo "make demo    set up, then train on four emulated hosts as a NIC falls: torchrun, trainmesh"
	@echo "make quick   after an edit: the tests that start nothing, about a minute"
	@echo "make test    set up, then check and test everything"
	@echo "make setup   virtual environment, dependencies, etcd; leaves $(BIN)/trainmesh"
	@echo "make lock    lock the newest versions of all dependencies in requirements/"
	@echo "make test-latest   the tests on the newest of everything, in .venv-latest"
	@echo "make compat TORCH=2.14.1   the tests of hooks, switching and parity on that torch, in an"
	@echo "             environment of its own (5 GB where PyPI's build brings CUDA)"
	@echo "make check   format, lint, types and import rules only"
	@echo "make bench   the figures of docs/benchmarks.md"
	@echo "make bench-serve   the router beside its peers (installs them; half an hour)"
	@echo "make test-compiled   the router's tests with its data path compiled"
	@echo "make fault   the long tests of faults: killed ranks, lost messages, cut connections"
	@echo "make soak    all long tests"

setup: $(STAMP)

$(STAMP): pyproject.toml $(wildcard requirements/*.txt) scripts/setup.sh scripts/system_packages.py
	@bash scripts/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

# Newer versions are news: run the tests before you commit.
lock: setup
	bash scripts/lock.sh $(BIN)/uv

demo: setup
	@bash scripts/demo.sh

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Planning, decisions, formats: what needs no process, server or process group (docs/testing.md).
quick: setup
	$(BIN)/python -m pytest --quick -n 2 --dist worksteal --durations=10

# Tests of pure planning and of the router share the cores well; those that train don't.
SIDE_BY_SIDE := tests/topology tests/serving
test: check
	$(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "not soak" $(SIDE_BY_SIDE:%=--ignore=%)

test-latest:
	@bash scripts/setup.sh "$(PYTHON)" .venv-latest latest
	@touch .venv-latest/.set-up
	$(MAKE) test VENV=.venv-latest

# No part of make test, for its size. A CUDA build without a GPU skips FSDP2, which needs one.
COMPAT := tests/hooks/test_agreement.py tests/hooks/test_switching.py tests/hooks/test_parity.py \
  tests/hooks/test_executors.py tests/hooks/test_fsdp.py \
  tests/launcher/test_parity.py tests/launcher/test_native_bits.py
compat:
	@bash scripts/compat.sh "$(PYTHON)" "$(TORCH)" ".venv-compat-$(TORCH)"
	.venv-compat-$(TORCH)/bin/python -m pytest -m "not soak" $(COMPAT)

test-compiled: setup
	scripts/compiled.sh $(BIN)/python build/compiled
	cd build/compiled && ../../$(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile \
	  tests/serving --ignore=tests/serving/abuse/test_splits.py

fault: setup
	$(BIN)/python -m pytest -m "fault and soak"

soak: setup
	$(BIN)/python -m pytest -m soak

bench: setup
	$(BIN)/python benchmarks/run.py

bench-serve: setup
	scripts/compiled.sh $(BIN)/python build/compiled
	$(BIN)/python benchmarks/serving/run.py

clean:
	rm -rf $(VENV) .venv-latest .venv-compat-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
