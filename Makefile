# `make` lists the targets. Everything that is built once lies in $(CACHE), outside the tree.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

CACHE := $(or $(PODGRAFT_CACHE),$(HOME)/.cache/podgraft)
export PODGRAFT_CACHE := $(CACHE)
# A folder with Debian source packages that is looked into before apt is asked.
ifneq ($(wildcard ../shared/corpus/sources),)
export PODGRAFT_SOURCES ?= $(abspath ../shared/corpus/sources)
endif
ifneq ($(wildcard ../shared/corpus/cases.tsv),)
export PODGRAFT_CORPUS ?= $(abspath ../shared/corpus)
endif
VENV := .venv
BIN := $(VENV)/bin
PYTHON := python3
CLUSTER := $(PYTHON) -m hack.cluster
STAMP := $(VENV)/installed
PYTEST := $(BIN)/pytest
# Most of what is run here are short Python programs: compiled anew each time, an engine takes twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## System packages (apt) and .venv with all commands; does nothing the second time
	@hack/install-packages

$(STAMP): requirements.lock pyproject.toml
	@hack/install-packages
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet 'uv>=0.9'
	@echo "==> .venv from requirements.lock"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirements requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: lock
lock: $(STAMP) ## Write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --python-version 3.11 --generate-hashes --upgrade \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --output-file requirements.lock

.PHONY: lint
lint: $(STAMP) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: tools
tools: ## Build kubectl, helm and the cluster's own programs, where they are missing
	@$(CLUSTER) path >/dev/null

# Before pytest, which would hide the progress of what takes minutes on a new machine.
.PHONY: prepare
prepare: install tools ## Build what the end-to-end tests and the demo need: images, the fix as a bundle
	@$(PYTHON) -m hack.images >/dev/null
	@$(BIN)/python -m hack.demo.bundle >/dev/null

# All layers in one pytest run, so that its last line is the summary of everything.
.PHONY: test test-unit test-engine test-builder test-operator test-e2e
test: prepare ## All tests, the end-to-end ones on a cluster of three nodes; stops what it started
	@$(WITH_TOOLS) $(PYTEST) tests
test-unit: install ## Tests without processes or clusters
	@$(PYTEST) tests/unit
test-engine: install ## Tests that patch real processes (root)
	@$(PYTEST) tests/engine
test-builder: install ## Tests that build bundles from source
	@$(PYTEST) tests/builder
test-operator: install tools ## Tests against a real API server
	@$(WITH_TOOLS) $(PYTEST) tests/operator
test-e2e: prepare ## Tests on the three-node cluster
	@$(WITH_TOOLS) $(PYTEST) tests/e2e

.PHONY: e2e
e2e: prepare ## Everything that can be tested on the three-node cluster, with a list and times (about 40 min; ONLY=name)
	@hack/install-packages libfaketime
	@$(WITH_TOOLS) $(PYTEST) tests/e2e -m cluster $(if $(ONLY),-k $(ONLY))

.PHONY: chaos
chaos: prepare ## Random kills, restarts, scaling, edits and node losses under load on the three-node cluster (MINUTES=30 SEED=1)
	@$(WITH_TOOLS) $(BIN)/python -m hack.chaos $(if $(MINUTES),--minutes=$(MINUTES)) $(if $(SEED),--seed=$(SEED))

# kubectl, helm and our commands on PATH; PODGRAFT_KUBE is the binary that is kube-apiserver by its name.
WITH_TOOLS = TOOLS=$$($(CLUSTER) path); PATH="$$TOOLS:$(abspath $(BIN)):$$PATH" \
  PODGRAFT_KUBE=$$(readlink -f "$$TOOLS/kube-apiserver")

.PHONY: cluster-up cluster-down
cluster-up: install ## Three-node Kubernetes (kind where docker works, else namespaces); prints export KUBECONFIG=…
	@$(CLUSTER) up
	@echo "export PATH=$$($(CLUSTER) path):\$$PATH"
cluster-down: ## Remove the cluster, also after an attempt that failed
	@$(CLUSTER) down

.PHONY: images
images: install ## Build all container images, and push them to the nodes of a cluster that runs
	@$(PYTHON) -m hack.images
	@if $(CLUSTER) running; then $(CLUSTER) push $(CACHE)/images/export; fi

.PHONY: demo demo-local
demo: prepare ## Patch three Redis pods under load, and show what happened (KEEP=1 leaves the cluster up)
	@$(WITH_TOOLS) $(BIN)/python -m hack.demo $(if $(KEEP),--keep)
demo-local: install ## The same with one process and no cluster
	@$(BIN)/python -m hack.demo --local

.PHONY: bench
bench: install ## Measure, compare with the goals, write docs/bench (about 45 min; BENCH="--quick" or "threads size" for less)
	@$(BIN)/python -m bench $(BENCH)

.PHONY: scale
scale: install tools ## A rollout over 100, 300 and 1,000 simulated nodes; writes docs/scale.md (NODES=n for one size)
	@$(WITH_TOOLS) $(BIN)/python -m bench.scale $(NODES)

.PHONY: killtest torture fuzz consistency
consistency: install ## Replace two functions that belong together 1,000 times: is ever a pair mixed? (PATCHES=n)
	@$(BIN)/python -m tests.torture.consistency $(if $(PATCHES),--patches=$(PATCHES))
fuzz: install ## Give 10,000 damaged bundles to check and apply on a real process (CASES=n)
	@$(BIN)/python -m tests.torture.fuzz $(if $(CASES),--cases=$(CASES))
torture: install ## Patch and revert 25 kinds of programs under load, 200 times each (CYCLES=n)
	@$(BIN)/python -m tests.torture.torture $(if $(CYCLES),--cycles=$(CYCLES))
killtest: install ## Kill the engine 1,000 times, at every step, against a loaded program and Redis (KILLS=n)
	@$(BIN)/python -m tests.torture.killtest $(if $(KILLS),--kills=$(KILLS))

.PHONY: sites
sites: install ## What share of the functions of common servers and libraries can be patched; writes docs/sites.md
	@$(BIN)/python -m podgraft_engine.survey --write docs/sites.md $$($(PYTHON) -m hack.programs)

.PHONY: corpus
corpus: install ## Real fixes as bundles, applied to the programs under load; writes docs/corpus.md (ONLY=redis: a part; ONLY=--known: the page alone; root)
	@$(BIN)/python -m hack.corpus $(ONLY)

.PHONY: heldout
heldout: install ## Changes to programs that the builder was not made with; writes docs/heldout.md (ONLY=lighttpd: a part; root)
	@$(BIN)/python -m hack.heldout $(ONLY)

.PHONY: mutate
mutate: install ## Random edits of Redis, patched in and compared with a fresh start; writes docs/mutate.md (COUNT=n SEED=n; root)
	@$(BIN)/python -m hack.mutate $(or $(COUNT),500) $(or $(SEED),1)

.PHONY: asm
asm: ## Assemble the engine's machine code anew from its sources
	cd nodeagent/podgraft_engine/helper/asm && gcc -c -o block.o block.S && objcopy -O binary -j .text block.o block.bin && rm block.o
	cd nodeagent/podgraft_engine/wakeup/asm && gcc -c -o wake.o wake.S && objcopy -O binary -j .text wake.o wake.bin && rm wake.o
	cd nodeagent/podgraft_engine/hooks/asm && gcc -c -o hook.o hook.S && objcopy -O binary -j .text hook.o hook.bin && rm hook.o

.PHONY: crds
crds: $(STAMP) ## Write crds/ anew from the models
	$(BIN)/python -m podgraft_api.crd

.PHONY: dashboard
dashboard: $(STAMP) ## Write the chart's Grafana dashboard anew
	$(BIN)/python -m hack.dashboard

.PHONY: clean
clean: ## Remove what is built in the tree; the cache stays (rm -rf $(CACHE))
	rm -rf $(VENV) out dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
