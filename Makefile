# The commands of this repository. A newcomer needs `make demo` and `make test` only; both install their dependencies, in
# .venv and node_modules, and change no other place.
.DEFAULT_GOAL := help
.PHONY: help demo web docs dist test test-others test-sdks test-web test-long lint format
.PHONY: sim chaos fuzz attack bench clean

PYTHON ?= python3
# Tests start several hundred processes; without cached bytecode each one compiles the package again, which takes 0.35 s.
export PYTHONDONTWRITEBYTECODE :=
VENV := .venv
BIN := $(VENV)/bin

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(VENV)/.demo ## a chat that survives refresh, on this machine; LAN=1 also lets phones in, by invitation
	@echo 'Starting the demo …'
	@$(BIN)/tenuto demo $(if $(LAN),--lan)

web: node_modules/.installed ## build the packages of the browser client, into dist/web
	@scripts/build_web

docs: $(VENV)/.docs node_modules/.installed ## build the site of the documentation, without a network, into build/docs/site: TENUTO_REPOSITORY=, TENUTO_SITE=
	@$(BIN)/python scripts/docs.py build/docs

dist: node_modules/.installed ## build and check what a release publishes, into dist: TENUTO_REPOSITORY=
	@scripts/dist dist $(PYTHON)

# tests that `make test-long` runs: its steps name them
LONG := simulation fuzz chaos bench attacks browser/long interop/long test_bytes.py agents/test_types.py
LONG += examples/test_mcp_task.py stores/test_sqlite_damage.py
LONG += $(patsubst %,stores/test_postgres_%.py,failover pooler refusals unreadable)
# cases of tests/interop that scripts/test_interop runs with each release of the AI SDK, or each client
CASES := ai_sdk.py::test_attempt_in_which_a_page_was_asked ai_sdk.py::test_failed_silent_and_double_answers
CASES += cuts.py::test_answers_that_are_cut_at_random
# Tests with SDKs of models run in a process of their own: to import those takes each process 7 s of CPU.
SDKS := agents/test_ended.py sources
SDKS += $(patsubst %,interop/test_%.py,cuts open_responses openai openai_api openai_attempts openai_socket options)
DESELECT := $(addprefix --deselect tests/interop/test_,$(CASES))
test test-others test-sdks test-web: $(VENV)/.dev node_modules/.installed
test: ## all tests but the long ones, the browser's too
	@scripts/ensure_chromium
	@$(MAKE) --no-print-directory --jobs 3 test-others test-sdks test-web

test-others:
	@$(BIN)/pytest -n 4 --dist loadfile $(addprefix --ignore tests/,$(LONG) $(SDKS)) $(DESELECT)

test-sdks:
	@$(BIN)/pytest $(DESELECT) $(addprefix tests/,$(SDKS))

test-web:
	@npm test --silent

test-long: $(VENV)/.dev node_modules/.installed ## the built package, other releases of the dependencies, faults, seeds
	@scripts/test_long

lint: $(VENV)/.dev node_modules/.installed ## format, lint and strict types, in Python and JavaScript
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2
	npm run --silent check

format: $(VENV)/.dev ## put the code in form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## measure, beside a bare asyncio server and others: ROWS=, QUICK=1, DIR=, PAGE=
	$(BIN)/python -m bench $(ROWS) $(if $(QUICK),--quick) $(if $(DIR),--dir $(DIR)) $(if $(PAGE),--markdown $(PAGE))

sim: $(VENV)/.dev ## simulate hubs, stores, networks and people under a virtual clock: SEEDS=, START=
	$(BIN)/python -m proof.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(START),--start $(START))

chaos: $(VENV)/.dev ## real faults with real processes: NAMES=, ROUNDS=, SEED=
	$(BIN)/python -m proof.chaos $(NAMES) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.dev node_modules/.installed ## send arbitrary input from every kind of peer, for ten minutes: SECONDS=, SEED=
	@seed=$(or $(SEED),$$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')); seconds=$(or $(SECONDS),600); \
	echo "SEED=$$seed, $$seconds seconds: three quarters for the server, the rest for the browser's client"; \
	$(BIN)/python -m proof.fuzz --seconds $$((seconds * 3 / 4)) --seed $$seed && \
	SEED=$$seed FUZZ_SECONDS=$$((seconds / 4)) node --test tests/web/fuzz.test.js

attack: $(VENV)/.dev ## unknown peers against a real server, in the long form
	TENUTO_ATTACKS=long $(BIN)/pytest -s tests/attacks

$(VENV)/bin/python:
	@scripts/make_venv $(PYTHON) $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	@echo 'Installing Tenuto and its dependencies in $(VENV) …'
	@scripts/install $(VENV) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	@echo 'Installing Tenuto and the tools for its tests in $(VENV) …'
	@scripts/install $(VENV) --editable '.[demo]' --group dev
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml
	@scripts/install $(VENV) --group docs
	@touch $@

node_modules/.installed: package.json
	@command -v npm >/dev/null || { echo 'Node.js 20 or newer with npm is needed for the browser client (Debian: apt-get install nodejs npm)'; exit 1; }
	@scripts/npm_install --silent
	@touch $@

clean: ## remove all installed dependencies
	rm -rf $(VENV) node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
