# `make run` works on a fresh clone: it creates the environment, installs, and runs the whole graph at profile nano.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
TASKS := --no-deps "reasoning-gym==0.1.25"

.PHONY: run test test-all check audit ui install install-dev clean

run: install
	$(BIN)/forge run --profile nano

# What a newcomer runs: minutes. `make test-all` runs the rest: kills, containers, a browser, Slurm, Postgres, long
# trainings. A file's tests stay in one process, so that they share what it makes.
PYTEST := -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

test: install-dev
	$(BIN)/python $(PYTEST) -m "not slow and not postgres"

test-all: install-dev
	$(BIN)/python $(PYTEST) -m "slow or postgres"

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house_rules.py

audit:
	@bash .ci/audit $(PYTHON)

ui: install
	$(BIN)/forge up

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable .
	$(PIP) install $(TASKS)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
