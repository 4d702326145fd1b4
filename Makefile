# Task names only. `make demo` and `make test` install what is missing and do nothing twice: stamps live in .cache/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMPS := .cache
BPF_SOURCES := $(wildcard bpf/*.bpf.c bpf/include/*.h) tools/build_objects.py
PROJECT := pyproject.toml hatch_build.py
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check
export MCPGUARD_KERNEL_TESTS ?= auto

.PHONY: help demo test test-vm lint bpf bench wheel clean

help: ## show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(STAMPS)/installed $(STAMPS)/objects ## install what is missing, then run a guarded agent and show what was refused
	@if [[ $$(id -u) -ne 0 ]]; then $(VENV)/bin/mcpguard setup; fi
	$(PYTHON) demo/run.py

# Kernel and agent suites need root: they load BPF programs and make users, namespaces and cgroups.
test: $(STAMPS)/test-installed $(STAMPS)/objects ## install what is missing, then run every test (MCPGUARD_KERNEL_TESTS=require: no skips)
	@if [[ $$(id -u) -eq 0 ]]; then
		$(PYTHON) -m pytest $(PYTEST_ARGS)
	else
		$(PYTHON) -m pytest -m "not kernel and not agent" $(PYTEST_ARGS)
		sudo -E env PATH="$$PATH" PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest -m "kernel or agent" $(PYTEST_ARGS)
	fi

# BPF programs are compiled on the host: in an emulated guest that takes sixteen times as long.
test-vm: $(STAMPS)/test-installed $(STAMPS)/objects $(STAMPS)/packages-vm ## boot Debian's kernels in qemu and test in them (LANES=ci: the part that CI runs)
	@MCPGUARD_VM_LANES="$(or $(LANES),all)" $(PYTHON) -m pytest tests/vm/test_lanes.py $(PYTEST_ARGS)

lint: $(STAMPS)/test-installed ## ruff, mypy, the layer rules, and whether every test can be collected
	@$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports
	collected=$$($(PYTHON) -m pytest --collect-only -q 2>&1) || { tail -30 <<<"$$collected"; exit 1; }

bpf: $(STAMPS)/packages-build ## compile the BPF programs into the package
	@/usr/bin/env python3 tools/build_objects.py
	mkdir -p $(STAMPS) && touch $(STAMPS)/objects

bench: $(STAMPS)/test-installed $(STAMPS)/objects ## every benchmark, for some 40 minutes (BENCH_ARGS=--quick: less), into benchmarks/results.json
	@tools/packages.sh bench || true # the table says what is missing
	@tools/packages.sh vm || true # for the tiers that only guests have
	@$(PYTHON) benchmarks/all.py $(BENCH_ARGS)

wheel: $(STAMPS)/test-installed $(STAMPS)/objects ## build the wheel and the source distribution into dist/
	@$(PYTHON) -m build --quiet --outdir dist .
	ls -l dist

clean: ## remove everything that was built here
	rm -rf $(VENV) $(STAMPS) dist build src/mcpguard/_bpf src/mcpguard/_lib .mypy_cache .ruff_cache .hypothesis
	find src tests demo -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMPS)/packages-build: tools/packages.sh
	@tools/packages.sh build
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/packages-test: tools/packages.sh
	@tools/packages.sh test
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/packages-vm: tools/packages.sh
	@tools/packages.sh vm
	mkdir -p $(STAMPS) && touch $@

# The first python that is new enough; the system's own comes first because root can trust it.
$(PYTHON): | $(STAMPS)/packages-build
	@for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			"$$python" -m venv $(VENV)
			exit 0
		fi
	done
	echo "mcpguard: Python 3.11 or newer is needed (Ubuntu 22.04: apt-get install python3.11 python3.11-venv)" >&2
	exit 1

$(STAMPS)/objects: $(BPF_SOURCES) | $(STAMPS)/packages-build
	@/usr/bin/env python3 tools/build_objects.py
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/installed: $(PROJECT) $(PYTHON) | $(STAMPS)/packages-build
	@$(PIP) --editable .
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test-installed: $(PROJECT) $(PYTHON) | $(STAMPS)/packages-test
	@$(PIP) --editable '.[dev]'
	mkdir -p $(STAMPS) && touch $@ $(STAMPS)/installed
