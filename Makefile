# Each target sets up what it needs in .venv/; the machine has to have only make and Python 3.11+.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
# Extra arguments for pytest: make test ARGS='-k evicted -x'
ARGS ?=
# That run tests, a file each; stress tests, which load the machine themselves, go one by one.
PROCESSES ?= 3

.PHONY: help install demo test lint bench stress protos clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

install: $(STAMP)  ## Terrace, editable, with all tools in .venv/

# torch goes first, on its own: the largest by far, and a CPU build that pip was pointed to
# (PIP_FIND_LINKS) sorts above the plain one of the same version, so it is the one taken.
# libcachesim: tests compare hits with its own and skip without it. Alone, since it asks for far more
# than what is used here.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"Terrace needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + \
	"; name another: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	-$(PIP) --no-deps libcachesim
	@touch $@

demo: $(STAMP)  ## train on 336,776 real flights with little RAM
	rm -rf run/demo
	$(BIN)/terrace train --data flights --store run/demo --ram 24MiB

test: lint  ## lint, then every test but the stress tests
	@$(call with_fresh_kernels,$(ARGS))

stress: PROCESSES = 0
stress: $(STAMP)  ## long runs against an oracle and under faults
	@$(call with_fresh_kernels,-m stress tests $(ARGS))

# A cache of its own for numba's compiled kernels: one left by another version of a kernel's
# callee would be taken for fresh, since numba looks at the kernel's own file only.
define with_fresh_kernels
cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && trap 'exit 130' INT TERM && \
NUMBA_CACHE_DIR="$$cache" $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder $(1)
endef

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## one training step beside its peers
	$(BIN)/python -m tests.benchmarks.step

protos: $(STAMP)  ## generated code anew from protos/
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. protos/ps/wire/*.proto

clean:  ## the demo's store and all caches; .venv/ and other stores stay
	rm -rf run/demo build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find storage ps worker deploy tests -name __pycache__ -type d -prune -exec rm -rf {} +
