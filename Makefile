# nvme-mdev: `make demo` shows it, `make test` proves it. Both install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory --silent
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Any Python from 3.11 on, Debian's or another; used once, to make the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAGE := tools/stage
AS_ROOT := $(if $(filter 0,$(shell id -u)),,$(shell command -v sudo))

# What a bare Debian 12 lacks to build, and what the tests use besides.
BUILD_PACKAGES := gcc libc6-dev python3-dev python3-venv liburing-dev libssl-dev
TEST_PACKAGES := debootstrap fio e2fsprogs valgrind

# Extra arguments for pytest: make fast ARGS='-k serve'
ARGS ?=
# Processes that run the fast tests; the VM tests use both cores of a small machine by themselves.
JOBS ?= $(shell nproc)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

# What is tested compiles without a warning; a user's compiler may know new ones.
test fast lint budget: export NVME_MDEV_WERROR := 1

.PHONY: demo
demo: build ## show the product: an image, the daemon, verified I/O, latency and IOPS
	@$(BIN)/nvme-mdev demo $(ARGS)

.PHONY: test
test: lint ## prove it: linters, fast tests, instruction counts, then real virtual machines
	@$(STAGE) 'fast tests' $(MAKE) run-fast
	@$(STAGE) 'instruction budget' $(BIN)/python -m benchmarks
	@$(STAGE) 'VM lab' $(MAKE) run-lab
	@$(STAGE) 'VM tests' $(MAKE) run-vm

.PHONY: fast
fast: build-test ## the tests that need no virtual machine
	@$(STAGE) 'fast tests' $(MAKE) run-fast

.PHONY: budget
budget: build-test ## count the instructions of a command, and compare with benchmarks/budget.toml
	@$(STAGE) 'instruction budget' $(BIN)/python -m benchmarks

# And the tables in docs/performance.md.
.PHONY: record-budget
record-budget: build-test
	@$(BIN)/python -m benchmarks --record

.PHONY: lint
lint: build-test ## ruff, mypy and the layers
	@$(STAGE) 'ruff check' $(BIN)/ruff check -q
	@$(STAGE) 'ruff format' $(BIN)/ruff format -q --check
	@$(STAGE) 'mypy' $(BIN)/mypy --no-error-summary
	@$(STAGE) 'layers' $(BIN)/lint-imports --no-logo

.PHONY: build
build: ## install what the daemon needs and compile it
	@$(STAGE) -q 'Debian packages' tools/debian-packages $(BUILD_PACKAGES)
	@$(MAKE) $(VENV)/.built
# As pip does it for a wheel: a daemon is ready a third sooner. Some environments forbid it to
# Python itself (PYTHONDONTWRITEBYTECODE).
	@$(BIN)/python -m compileall -q src

.PHONY: build-test
build-test: build
	@$(STAGE) -q 'Debian packages' tools/debian-packages $(TEST_PACKAGES)
	@$(MAKE) $(VENV)/.test

.PHONY: clean
clean: ## remove everything that make made here (what the VM lab keeps elsewhere stays)
	rm -rf $(VENV) build dist src/*.egg-info .[a-z]*_cache .hypothesis
	find src -name '*.so' -delete
	find src tests -name __pycache__ -type d -prune -exec rm -r {} +

# -- steps -----------------------------------------------------------------------------------

.PHONY: run-fast run-lab run-vm
run-fast:
	@$(BIN)/pytest -q -n $(JOBS) --ignore=tests/vm $(ARGS)
# Without the lab the VM tests are skipped and say why; where they are required, it is required.
# It is made by root, who must leave no files of his in the checkout.
run-lab:
	@cd tests/vm && { \
	$(AS_ROOT) env HOME="$$HOME" XDG_CACHE_HOME="$${XDG_CACHE_HOME:-}" \
	NVME_MDEV_LAB="$${NVME_MDEV_LAB:-}" PYTHONDONTWRITEBYTECODE=1 \
	../../$(BIN)/python -m lab prepare || \
	[ "$${NVME_MDEV_REQUIRE_VM:-0}" != 1 ]; }
run-vm:
	@$(BIN)/pytest -q tests/vm $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo '$(PYTHON) is too old: give one from 3.11 on (make PYTHON=...)' >&2; exit 1; }
	@$(STAGE) 'virtual environment' $(PYTHON) -m venv $(VENV)
# Dependency groups need pip 25.1.
	@$(BIN)/pip install -q --disable-pip-version-check 'pip>=25.1'

$(VENV)/.build: pyproject.toml | $(VENV)/bin/python
	@$(STAGE) 'build tools' $(BIN)/pip install -q --disable-pip-version-check --group build
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@$(STAGE) 'test tools' $(BIN)/pip install -q --disable-pip-version-check --group test --group lint
	@touch $@

SOURCES := $(shell find src -name '*.pyx' -o -name '*.pxd' -o -name '*.h')
$(VENV)/.built: setup.py pyproject.toml $(SOURCES) $(VENV)/.build
	@$(STAGE) 'compile' \
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@
