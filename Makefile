# Each target sets up what it needs. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest
# Most tests wait for servers: four workers keep two cores busy, each with servers of its own. On a server of
# yours (BRIDGE_TEST_DSN) they would meet.
WORKERS ?= $(if $(BRIDGE_TEST_DSN),0,4)
# A file's tests share servers. In the order of the folders the long ones come first; xdist would begin with the files
# that have most tests, and end with one worker at a long file.
SPREAD := --dist loadfile --no-loadscope-reorder
ARGS ?=

.venv/.ready: pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 setup"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || \
		{ echo "python3 -m venv does not work here; on Debian: apt-get install python3-venv"; exit 1; }
	$(PIP) install "$$(grep -o '^pip==[^ ]*' requirements-dev.txt)"
	$(PIP) install --require-hashes --requirement requirements-dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# An environment that keeps no bytecode (PYTHONDONTWRITEBYTECODE) would compile the package at each start.
setup: .venv/.ready ## a .venv with everything; .venv/bin/bridge is the command
	@$(PY) -m compileall -q bridge bench

lock: ## requirements-dev.txt anew, what setup installs; newer versions: ARGS=--upgrade
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --quiet --disable-pip-version-check install uv
	build/lock/bin/uv --quiet pip compile --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command 'make lock' --extra demo --group dev pyproject.toml \
		--output-file requirements-dev.txt $(ARGS)

dist: setup ## the sdist and the wheel, in dist/, checked
	rm -rf dist
	$(PY) -m build --no-isolation --outdir dist .
	$(PY) -m twine check --strict dist/*

# The shell takes `make demo ARGS=--sources 3` apart: the 3 arrives as a target.
NUMBER := $(filter 1 2 3 4 5 6 7 8,$(MAKECMDGOALS))
ifneq ($(and $(filter demo,$(MAKECMDGOALS)),$(filter --sources,$(lastword $(ARGS))),$(NUMBER)),)
override ARGS += $(NUMBER)
.PHONY: $(NUMBER)
$(NUMBER): ; @:
endif

demo: setup ## embedded Postgres, producers, a bridge killed mid-stream, and the verdict
	.venv/bin/bridge demo $(ARGS)

test: setup ## the tests, without the slow ones
	$(PYTEST) -m "not slow" -n $(WORKERS) $(SPREAD) $(ARGS)

test-all: setup ## the tests, all of them; writes docs/test-report.md
	$(PYTEST) -n $(WORKERS) $(SPREAD) --junit-xml=build/test-all.xml $(ARGS); status=$$?; \
	$(PY) -m tests.report build/test-all.xml "$$(git rev-parse --short HEAD)" > docs/test-report.md && exit $$status

test-matrix: setup ## the tests marked `matrix`, on PostgreSQL 14 to 18
	$(PY) -m tests.matrix $(ARGS)

check: setup ## lint, format, types, import rules, what an event costs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m bench.budget

bench: setup ## throughput and latency against native replication; writes build/bench.json
	$(PY) -m bench $(ARGS)

bench-peers: setup ## the bridge beside other tools for the same work; writes build/bench-peers.md
	$(PY) -m bench.peers $(ARGS)

bench-growth: setup ## what an event costs as backlog, table, pipelines and transactions grow; writes docs/growth.svg
	$(PY) -m bench.growth $(ARGS)

torture: setup ## faults at random under load, the conservation law every minute
	$(PY) -m tests.torture $(ARGS)

torture-log: setup ## the same to relays, workers and a log of three nodes: a short run; ARGS="--faults 500"
	$(PY) -m tests.torture.log $(ARGS)

mutants: setup ## break the protocol on purpose, one way at a time: each must be caught
	$(PY) -m tests.mutants $(ARGS)

test-sdk: setup ## the TypeScript SDK's tests, against a real bridge; needs node 20
	cd sdk/typescript && npm ci --no-audit --no-fund && BRIDGE_PYTHON=$(CURDIR)/$(PY) npm test

screenshots: setup ## the pictures of the console in docs/console, by a real browser
	BRIDGE_SCREENSHOTS=1 $(PYTEST) -q tests/integration/console/test_everybody.py -k pictures

clean: ## remove what the other targets made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: setup lock dist demo test test-all test-matrix check bench bench-peers bench-growth torture torture-log mutants test-sdk screenshots clean help
