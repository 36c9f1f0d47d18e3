# `make serve` and `make test` are all that most people need; `make help` lists the rest.
# torch: the CPU build. Elsewhere name another index: make serve TORCH_INDEX=https://download.pytorch.org/whl/cu128
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PIP := .venv/bin/python -m pip --disable-pip-version-check
CONSTRAINTS := -c constraints.txt
BENCH_ARGS ?=
SOAK_ARGS ?=
# An editable install of this folder, with the extras of each target.
SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-dev build serve test check fmt bench bench-peers bench-soak bench-crash bench-limits bench-faults bench-fuzz bench-directory bench-books bench-login clean test-guards test-security-long bench-propagation bench-decision

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "Python 3.11 is needed (looked for '$(PYTHON)'; name another with PYTHON=...)." >&2; exit 1; }
	@echo "[1/3] Making a virtual environment in .venv"
	@$(PYTHON) -m venv .venv

.venv/.torch: .venv/bin/python constraints.txt
	@echo "[2/3] Installing $(TORCH) (about 200 MB; it runs the local models)"
	@$(PIP) install --progress-bar on -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH) $(if $(TORCH_INDEX),,$(CONSTRAINTS))
	@touch $@

.venv/.installed: .venv/.torch $(SOURCES)
	@echo "[3/3] Installing the gateway and the exact versions in constraints.txt"
	@$(PIP) install -q $(CONSTRAINTS) -e '.[local,redis,native]'
	@touch $@

.venv/.dev: .venv/.installed
	@echo "[dev] Installing what the tests need"
	@$(PIP) install -q $(CONSTRAINTS) -e '.[local,redis,native,dev]'
	@touch $@

install: build ## .venv with everything pinned, compiled; the command is .venv/bin/gateway

install-dev: .venv/.dev build ## what the tests and benchmarks need too

# The script looks at the sources itself, and does nothing where the compiled form is theirs.
build: .venv/.installed ## compile the data plane, if it has changed; without a C compiler it runs interpreted
	@.venv/bin/python build_native.py --best-effort

serve: install ## install, create the first admin and a key, serve on 127.0.0.1:8000
	@.venv/bin/gateway serve --snippet $(if $(wildcard gateway.yaml),--config gateway.yaml)

test: install-dev check ## lint, types, import contracts, all tests
	.venv/bin/python build_native.py
ifdef TEST_ARGS
	.venv/bin/python -m pytest $(TEST_ARGS)
else
	.venv/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "not alone" $(SLOW_FIRST)
	.venv/bin/python -m pytest -m alone $(ALONE)
endif

# Tests that start gateways, databases and Redis wait for a third of their time: three processes keep two cores at work.
TEST_PROCESSES ?= 3
# Folders with few long files before those with many short ones: at the end no process waits long for the other.
SLOW_FIRST = tests/acceptance tests/security tests/live tests/contract tests/faults tests/wire tests/unit
# Files with tests that measure times or ports.
ALONE = $(shell grep -rlE 'mark\.alone' tests --include='test_*.py')

test-guards: install-dev ## takes each guard away in a copy of the tree: its tests must fail there
	.venv/bin/python -m tests.security.removed

test-security-long: install-dev ## 10,000 steps of people who want rights, 5,000 generated calls of the admin API
	.venv/bin/python -m tests.security.rights 10000
	.venv/bin/python -m tests.security.generated 5000

check: install-dev ## lint, types, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/mypy

fmt: install-dev ## format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: install-dev ## CPU, latency and memory beside the anchors (BENCH_ARGS="--quick")
	.venv/bin/python -m bench.run --json bench/results/latest.json $(BENCH_ARGS)

bench-peers: install-dev ## the same with vllm-router, sglang-router and LiteLLM from the package index
	-.venv/bin/python -m bench.peers vllm-router sglang-router litellm
	.venv/bin/python -m bench.run --systems anchor,gateway,anchor-again,vllm-router,sglang-router,litellm --json bench/results/peers.json $(BENCH_ARGS)

bench-faults: install-dev ## every fault x every endpoint x stream or not, ten times in a row under load
	.venv/bin/python -m tests.faults $(BENCH_ARGS)

bench-fuzz: install-dev ## 1,000,000 damaged requests, answers, streams and bodies at the relay's parsers
	.venv/bin/python -m tests.faults.fuzz $(BENCH_ARGS)

bench-directory: install-dev ## list, search, create among 10,000 users and 100,000 keys, on SQLite and PostgreSQL
	.venv/bin/python -m bench.directory --json bench/results/directory.json $(BENCH_ARGS)

bench-books: install-dev ## every report and page among 10,000,000 rows, on SQLite and PostgreSQL, beside relay traffic
	.venv/bin/python -m bench.books --json bench/results/books.json $(BENCH_ARGS)

bench-propagation: install-dev ## how soon a change of a key is in force on all of four workers, under load
	.venv/bin/python -m bench.propagation $(BENCH_ARGS)

bench-decision: install-dev ## CPU of a limit decision: one account with three limits, four with twelve, both forms
	.venv/bin/python -m bench.limits_decision --json bench/results/decision.json $(BENCH_ARGS)

bench-limits: install-dev ## 20 runs at five times each limit, four workers: never over, at least 98 % admitted (BENCH_ARGS="--hosts 2": with Redis)
	.venv/bin/python -m bench.limits $(BENCH_ARGS)

bench-crash: install-dev ## 50 trials of kill -9 under 200 requests/s, and SIGTERM, a full disk, a stopped database; the books must know all
	.venv/bin/python -m bench.crash $(BENCH_ARGS)

bench-soak: install-dev ## a million mixed requests: does anything leak? (SOAK_ARGS="--requests 50000")
	.venv/bin/python -m bench.soak --json bench/results/soak.json $(SOAK_ARGS)

bench-login: install-dev ## 100 wrong passwords a second from 1,000 addresses, beside running streams (BENCH_ARGS="--seconds 15")
	.venv/bin/python -m bench.login_attack --json bench/results/login.json $(BENCH_ARGS)

clean: ## remove what was installed and built
	rm -rf .venv build dist gateway/_native .mypy_cache .ruff_cache .pytest_cache
