# Everything a contributor or a machine runs. Each target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PB     := src/serviceradar_poller/wire/pb

.PHONY: setup demo run check test fuzz bench docs proto lock clean

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/serviceradar-poller demo

CONFIG ?= /etc/serviceradar/poller.json
run: setup
	$(BIN)/serviceradar-poller --config $(CONFIG)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Most tests wait for real time: a process more than there are cores, and each file within one of them.
TEST_PROCESSES ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
test: setup
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

# Looks for bytes that hurt our HTTP/2, in a session alone and in a whole channel; what it finds is kept in build/fuzz.
SECONDS ?= 60
SEED ?= 1
FUZZ := $(BIN)/python -m serviceradar_poller.testing.http2_fuzz tests/data/http2_corpus --keep build/fuzz
fuzz: setup
	$(FUZZ) --seconds $(SECONDS) --seed $(SEED)
	$(FUZZ) --seconds $(SECONDS) --seed $(SEED) --channel

bench: setup
	$(BIN)/python -m benchmarks

docs: setup
	$(BIN)/python -m pytest tests/docs

# The generated code is committed; tests/wire/test_generated.py holds it to the contract.
proto: setup
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(PB) --pyi_out=$(PB) proto/monitoring.proto

# Versions and hashes of everything, for every platform.
lock:
	test -x $(VENV)/lock/bin/uv || ($(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet uv)
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --group dev pyproject.toml --output-file constraints.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
