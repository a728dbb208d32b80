# Everything that is done with this project, by name. `make` alone lists it.

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What has been installed, and from which pyproject.toml: a changed one is installed again, an unchanged one costs nothing.
SUM := $(shell cksum < pyproject.toml | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed-$(SUM)
DEMO := $(VENV)/.demo-$(SUM)
# Tests of one file share a worker, so that a server that they share is started once. A worker that dies ends the run and
# names its test: with another in its place the run would wait for ever.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart=0
FAST := tests/rules tests/unit tests/wire tests/docs/test_parity_table.py
LINTED := src tests bench examples

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-gpu bench soak overload reload budget proto format clean lint tools

help: ## list what can be made
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1	\2/p' Makefile | expand -t 12

install: $(INSTALLED) ## create .venv with the server and everything to develop it

demo: $(DEMO) ## install, train a model, serve it and ask it
	$(BIN)/conch demo

check: $(INSTALLED) lint ## lint, types, layers and the tests that need no server: less than a minute
	$(PYTEST) -m "not slow" $(FAST)

test: $(INSTALLED) tools lint ## everything, as in CI
	$(PYTEST)

test-gpu: $(INSTALLED) ## the tests that need an NVIDIA GPU, with the frameworks for it; says so where there is none
	@FRAMEWORKS=install sh .ci/test-gpu.sh $(VENV)

bench: $(INSTALLED) ## Conch beside the real Triton, half an hour (ARGS=--quick: five minutes)
	bench/triton/setup.sh
	$(BIN)/python bench/compare.py $(ARGS)

soak: $(INSTALLED) ## mixed load with clients that misbehave: nothing may leak (MINUTES=30)
	$(BIN)/python tests/fault/soak.py --minutes $(or $(MINUTES),30)

overload: $(INSTALLED) ## three times the load that a model can bear: how much is done, what is refused (SECONDS=60)
	$(BIN)/python tests/fault/overload.py --seconds $(or $(SECONDS),60)

budget: $(INSTALLED) ## twenty models of which six fit into memory: what loads on demand take, and that nothing fails (SECONDS=120)
	$(BIN)/python tests/fault/budget.py --seconds $(or $(SECONDS),120)

reload: $(INSTALLED) ## 300 requests a second while models are reloaded, half of the loads broken (SECONDS=300 RELOADS=200)
	$(BIN)/python tests/fault/reload.py --seconds $(or $(SECONDS),300) --reloads $(or $(RELOADS),200)

proto: $(INSTALLED) ## generate src/conch/pb from proto/
	PYTHON=$(CURDIR)/$(BIN)/python sh proto/generate.sh

format: $(INSTALLED) ## format the code
	$(BIN)/ruff format $(LINTED)
	$(BIN)/ruff check --fix $(LINTED)

clean: ## remove what can be made again, the virtual environment too
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist demo_repository
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +

lint: $(INSTALLED)
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The clients that the tests drive the server with. Without root or sudo the tests that need a missing one are skipped.
tools: $(INSTALLED)
	@sh .ci/tools.sh
	@sh .ci/examples.sh $(VENV)
	@sh .ci/frameworks.sh $(VENV)

$(INSTALLED):
	sh .ci/install.sh "$(PYTHON)" "$(VENV)" dev
	@rm -f $(VENV)/.installed-*
	@touch $@

$(DEMO):
	@test -e $(INSTALLED) || sh .ci/install.sh "$(PYTHON)" "$(VENV)" demo
	@rm -f $(VENV)/.demo-*
	@touch $@
