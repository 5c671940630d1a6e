# Each target does its own set-up: a virtual environment in .venv, the project installed in it.
# PYTHON chooses the interpreter (3.10 or newer): make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-input

# Two pips at once in one environment would trip over each other.
.NOTPARALLEL:
.PHONY: demo test lint types docs check clean

demo: $(VENV)/.demo
	$(VENV)/bin/poolkit demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.types
	$(VENV)/bin/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir $(VENV)/site

check: test lint types docs

clean:
	rm -rf $(VENV)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "poolkit needs Python 3.10 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp file for each extra, older than pyproject.toml when the dependencies may have changed.
$(VENV)/.%: pyproject.toml $(VENV)/.made
	$(INSTALL) -e '.[$*]'
	@touch $@
