# Groundwire's verbs. All of them work on a fresh machine with Python 3.11+ and make, and need no root.
#
#   make serve    set everything up and start the server on http://127.0.0.1:8000
#   make test     the tests, with the real engine
#   make debian   the tests beside what Debian's packages have: PostgreSQL, Prometheus, its Pushgateway, Chromium
#   make check    formatting, lint and types
#   make dashboards   Grafana's JSON from grafana/*.py
#   make bench    Groundwire beside bare vLLM (hours on two cores); writes docs/performance.md
#   make soak     the slow tests, then the bench
#   make pins     resolve requirements/*.txt again from pyproject.toml (needs a network)
#
# Variables: HOST, PORT, MODEL (a hub name or a folder), VLLM_ARGS (any `vllm serve` flags), PYTHON.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := serve
.PHONY: serve docs-store test debian check dashboards bench soak pins clean

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
# Without compilation the first answer comes a minute earlier, and a newcomer's first start is what this
# default is for. `VLLM_ARGS= make serve` compiles.
VLLM_ARGS ?= $(if $(filter scripted,$(GROUNDWIRE_ENGINE)),,--enforce-eager)

VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients

# The first Python on the path that is new enough.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# A recipe of its own: the process that `exec` hands over began with its shell, and a start is timed from there.
serve: docs-store
	@echo "==> Starting the server"
	exec $(BIN)/groundwire serve --host '$(HOST)' --port '$(PORT)' --default-store docs \
		$(if $(MODEL),--model '$(MODEL)') $(VLLM_ARGS)

docs-store: $(VENV)/.runtime
	@echo "==> Ingesting docs/ and README.md into the store 'docs' (unchanged files are skipped)"
	$(BIN)/groundwire ingest docs README.md --store docs --prune

test: $(VENV)/.dev $(CLIENTS)/.installed
	@echo "==> Preparing the bundled models (once)"
	$(BIN)/groundwire setup
	echo "==> Running the tests: those with the real engine beside the others, then those that compare durations"
	$(BIN)/python -m pytest -m "not slow and not debian and not timed" -n 2 $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "timed and not slow and not debian" $(PYTEST_ARGS)

debian: $(VENV)/.dev
	@$(BIN)/groundwire setup
	$(BIN)/python -m pytest -m debian $(PYTEST_ARGS)

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dashboards: $(VENV)/.dev
	@$(BIN)/python -m grafana

bench: $(VENV)/.runtime
	@$(BIN)/python -m bench $(BENCH_ARGS)

soak: $(VENV)/.dev $(CLIENTS)/.installed
	@$(BIN)/groundwire setup
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)
	$(MAKE) bench

clean:
	@rm -rf $(VENV) $(CLIENTS)

# Environments. A stamp stands for each; it is older than its requirements exactly when they have changed.

$(VENV)/.created $(CLIENTS)/.created:
	@if [ -z '$(PYTHON)' ]; then echo "Groundwire needs Python 3.11 or newer; none was found on the path" >&2; exit 1; fi
	echo "==> Creating $(@D) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(@D)
	touch $@

$(VENV)/.runtime: requirements/cpu.txt requirements/install.py pyproject.toml $(VENV)/.created
	@echo "==> Installing the pinned packages (700 MB to download the first time)"
	$(BIN)/python requirements/install.py requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	@echo "==> Installing the packages that the tests need"
	$(BIN)/python requirements/install.py requirements/dev.txt
	touch $@

$(CLIENTS)/.installed: requirements/clients.txt requirements/install.py $(CLIENTS)/.created
	@echo "==> Installing the client libraries that the tests drive"
	$(CLIENTS)/bin/python requirements/install.py requirements/clients.txt
	touch $@

# Exact versions and no addresses. Versions that still fit are kept: `make pins UPGRADE=--upgrade` moves all.
# pip's find-links is handed on, for torch's CPU build may be there.
COMPILE = $(BIN)/uv pip compile --quiet --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 $(UPGRADE)
CPU_FLAGS = --override requirements/overrides.txt \
	$(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)

pins: $(VENV)/.runtime
	@$(COMPILE) $(CPU_FLAGS) pyproject.toml --extra cpu --output-file requirements/cpu.txt
	cat requirements/cpu.txt requirements/dev.txt > $(VENV)/all.txt
	$(COMPILE) $(CPU_FLAGS) --constraint requirements/cpu.txt pyproject.toml --extra cpu --extra dev --output-file $(VENV)/all.txt
	grep -vxFf requirements/cpu.txt $(VENV)/all.txt > requirements/dev.txt
	$(COMPILE) pyproject.toml --extra gpu --output-file requirements/gpu.txt
	$(COMPILE) requirements/clients.in --output-file requirements/clients.txt
