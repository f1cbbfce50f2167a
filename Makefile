# Shortcuts for development; `make check` is what CI runs.
.PHONY: check test lint proto bench

check:
	.ci/run

test:
	.venv-test/bin/pytest

lint:
	.venv-test/bin/ruff check --fix . && .venv-test/bin/ruff format . && .venv-test/bin/mypy

proto:
	PYTHON=.venv-test/bin/python .ci/proto

bench:
	.venv-test/bin/python bench/edge.py && .venv-test/bin/python bench/footprint.py
	.venv-test/bin/python bench/cloud.py --rounds 3 && .venv-test/bin/python bench/overload.py
	.venv-test/bin/python bench/watching.py && .venv-test/bin/python bench/replay.py
