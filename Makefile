# `make help` says what there is. Every target works alone on a machine that has Python 3.11+, make and PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

.PHONY: help
help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

.PHONY: setup setup-dev
setup: $(VENV)/.installed  ## Create .venv from the lock, with .venv/bin/rebuildctl
setup-dev: $(VENV)/.installed-dev  ## The same, with what tests and checks need

.PHONY: demo
demo: setup  ## Rebuild 200 servers of a rehearsal cloud, with everything embedded
	$(BIN)/rebuildctl demo

.PHONY: test
test: setup-dev  ## The test suite, with its own PostgreSQL and Valkey
	$(BIN)/pytest -n 4 --dist worksteal -m "not chaos"

.PHONY: test-browser
test-browser: setup-dev  ## The pages in a real Chromium (Debian's package chromium)
	$(BIN)/pytest -m browser tests/browser

.PHONY: acceptance
acceptance: setup-dev  ## The contract suite and a small plan against the cloud named by OS_CLOUD (it rebuilds servers!)
	@test -n "$$OS_CLOUD" || { echo "OS_CLOUD names the cloud whose servers matching ACCEPTANCE_SERVERS are rebuilt" >&2; exit 2; }
	ACCEPTANCE=1 $(BIN)/pytest tests/clouds/contract tests/acceptance

.PHONY: chaos
chaos: setup-dev  ## Kill things at random and hold the cloud's account against the ledger
	$(BIN)/pytest -m chaos tests/chaos
	$(BIN)/python -m tests.chaos.many --seeds $(or $(SEEDS),13-40) --out chaos.jsonl

.PHONY: bench
bench: setup-dev  ## Measure the ledger at 100,000 jobs, and claims within budgets
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.budgets

.PHONY: lint
lint: setup-dev  ## Ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: lock
lock: setup-dev  ## Resolve the locks anew (versions and hashes, no addresses)
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra embedded --extra setup pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

.PHONY: clean
clean:  ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
