# Commands for this folder. All paths are relative, so its own path may contain any character.

PYTHON ?= python3
PORT ?= 8000
export PORT

IN_VENV := .venv/bin/python
WORKERS ?= 4
# Write compiled files even if this machine disables them, because the tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= $(IN_VENV) -m pytest --quiet
# For tools that load the settings but use no server.
NO_SERVERS := SECRET_KEY=lint DATABASE_URL=postgresql://127.0.0.1:1/none REDIS_URL=redis://127.0.0.1:1/0
# Production values, regardless of the environment.
PRODUCTION := SECRET_KEY=only-for-checks-but-as-long-and-as-mixed-as-a-real-one-is-0123456789 SECURE_COOKIES=1 TRUSTED_PROXIES=1 DEBUG=0

# npm writes this file last. Without npm, the test of the TypeScript client is skipped.
NODE_MODULES := tests/client/typescript/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help run test test-quick lint replay mutants schemathesis bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1|/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

run: .venv/installed ## run the exchange in the foreground, on 127.0.0.1:PORT (8000), the back office on BACKOFFICE_PORT (8001)
	@exec $(IN_VENV) -m config.local

test: .venv/installed $(if $(shell command -v npm 2> /dev/null),$(NODE_MODULES)) ## run all tests, in parallel (WORKERS=4), on their own servers
	$(PYTEST) --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-quick: .venv/installed ## run the tests that start no process and no browser, and list the others
	$(PYTEST) --numprocesses $(WORKERS) --dist worksteal --quick $(TESTS)

lint: .venv/installed ## format, lint, types, layers, migrations, schema: all checks, no changes
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m ruff check .
	$(NO_SERVERS) $(IN_VENV) -m mypy --strict .
	$(NO_SERVERS) $(IN_VENV) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(NO_SERVERS) $(IN_VENV) -W ignore manage.py makemigrations --check
	$(NO_SERVERS) $(PRODUCTION) $(IN_VENV) manage.py check --deploy --fail-level WARNING
	$(NO_SERVERS) $(PRODUCTION) $(IN_VENV) manage.py check --deploy --fail-level WARNING --settings config.settings.api
	$(NO_SERVERS) $(IN_VENV) manage.py spectacular --urlconf config.urls --validate --fail-on-warn --file /dev/null

replay: .venv/installed ## send MESSAGES=file to the running exchange and compare with BOOK=file
	@test -r .run/credentials.json || { echo "Nothing has run here yet: make run"; exit 1; }
	@exec $(IN_VENV) -m tools.replay --messages "$(MESSAGES)" --book "$(BOOK)"

schemathesis: .venv/installed ## send 100 requests per operation and kind of key, and compare the responses with the schema
	$(PYTEST) --numprocesses 2 tests/schema/conformance.py

bench: .venv/installed ## run the benchmark, about 30 minutes (QUICK=1: 3 minutes); needs wrk; see bench/README.md
	@QUICK="$(QUICK)" exec $(IN_VENV) -m bench

mutants: .venv/installed ## break one rule at a time, in parallel, and check that its test fails
	$(IN_VENV) -m tests.mutants

clean: ## remove .run/: the database, the keys, the logs (not while it runs)
	@$(PYTHON) config/local/clean.py

# Install the packages of the lock file, with hash checks; repeated only when the file has changed.
.venv/installed: requirements-dev.txt
	@command -v "$(PYTHON)" > /dev/null || { echo "There is no $(PYTHON) here; Python 3.11 or newer is needed."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2> /dev/null || \
	  { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@"$(PYTHON)" -m venv .venv
	@echo "Installing into .venv ..."
	@$(IN_VENV) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch .venv/installed

# The generator and compiler of the TypeScript client, also by a lock file with hashes.
$(NODE_MODULES): tests/client/typescript/package-lock.json
	@npm ci --prefix tests/client/typescript --loglevel=error || \
	  echo "npm could not install the TypeScript compiler; its test is skipped."
