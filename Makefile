# Shortcuts for development. `make dev` once; `make fast` as you work; `make check` before a change lands.
.PHONY: dev fast test lint check docs proto bench

PYTHON ?= python3
BIN = .venv-test/bin

dev: # a virtual environment with everything that the tests and the checks need
	$(PYTHON) -m venv .venv-test
	$(BIN)/pip install -q -c constraints.txt -e '.[test]' -e ./zoo

fast: # lint, types and the quickest tests: seconds
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	COE_EXAMPLES=10 $(BIN)/pytest tests/test_layers.py tests/test_docs.py tests/cascade tests/link tests/config

test: # what README's second command runs
	$(BIN)/pytest -n 4 --dist loadfile

lint: # as `fast`, but what can be corrected is
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

check: # all that must hold: what CI runs
	.ci/run

docs: # the tables of settings in docs/ and the samples in configs/
	$(BIN)/python .ci/settings

proto:
	PYTHON=$(BIN)/python .ci/proto

bench:
	$(BIN)/python bench/edge.py && $(BIN)/python bench/footprint.py
	$(BIN)/python bench/cloud.py --rounds 3 && $(BIN)/python bench/overload.py
	$(BIN)/python bench/watching.py && $(BIN)/python bench/replay.py
