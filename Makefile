# Each target does its own set-up: a virtual environment in .venv, the project installed in it.
# PYTHON chooses the interpreter (3.10 or newer): make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-input

# Two pips at once in one environment would trip over each other.
.NOTPARALLEL:
.PHONY: demo test lint types docs dist check clean conformance conformance-urllib3 oldest pythons pythons-folder simulate bench bench-docs mutants soak

demo: $(VENV)/.demo
	$(VENV)/bin/poolkit demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.types
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_typing.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir $(VENV)/site

# The wheel and the source distribution in dist/, checked: their contents, their description, and what they install.
dist: $(VENV)/.dist
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist .
	$(VENV)/bin/twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist
	$(VENV)/bin/python tests/support/installed.py dist

# The drivers' own test suites with our pools in the place of theirs (CONFORMANCE_ARGS='--suite redis --quick').
conformance: $(VENV)-conformance/.ready
	$(VENV)-conformance/bin/python -m tests.conformance $(CONFORMANCE_ARGS)

# urllib3's suite in an environment of its own, see its requirements (CONFORMANCE_ARGS=--quick).
conformance-urllib3: $(VENV)-conformance-urllib3/.ready
	$(VENV)-conformance-urllib3/bin/python -m tests.conformance --suite urllib3 $(CONFORMANCE_ARGS)

# The adapters' tests on the oldest drivers that pyproject.toml allows.
oldest: $(VENV)-oldest/.ready
	$(VENV)-oldest/bin/python -m pytest -n $(WORKERS) tests/adapters $(PYTEST_ARGS)

# The tests on each interpreter that is there, on PATH or in the folder PYTHONS_IN
# (make pythons PYTHONS='3.14 3.15 3.14t' PYTHONS_IN=/srv/pythons PYTEST_ARGS='tests/core').
pythons: $(VENV)/.made
	$(VENV)/bin/python contrib/pythons.py test --folder '$(PYTHONS_IN)' --into $(VENV)-pythons $(PYTHONS) -- -n $(WORKERS) $(PYTEST_ARGS)

# Debian's newest Pythons in such a folder, beside the system's own; needs root and debootstrap.
pythons-folder: $(VENV)/.made
	$(VENV)/bin/python contrib/pythons.py folder '$(PYTHONS_IN)' --mirror '$(MIRROR)'

# A million random steps of the core and some thousand schedules of whole pools, fresh seeds each time.
simulate: $(VENV)/.test
	$(VENV)/bin/python -m tests.simulation --steps 1000000 $(SIMULATE_ARGS)

# Each planted fault must be noticed by a test (MUTANTS_ARGS='--jobs 2 14 15').
mutants: $(VENV)/.test
	$(VENV)/bin/python -m tests.mutants $(MUTANTS_ARGS)

# All adapters together under random faults; every reply is checked (SOAK_ARGS='--minutes 30').
soak: $(VENV)/.test
	$(VENV)/bin/python -m bench.soak $(SOAK_ARGS)

# poolkit beside the drivers' own pools, turn by turn (BENCH_ARGS='cycle spike --quick').
bench: $(VENV)/.bench
	$(VENV)/bin/python -m bench $(BENCH_ARGS)

# Measure all of it and write docs/benchmarks.md, its numbers and its plots.
bench-docs: $(VENV)/.bench
	$(VENV)/bin/python -m bench --docs docs $(BENCH_ARGS)

check: test lint types docs

clean:
	rm -rf $(VENV) $(VENV)-conformance $(VENV)-conformance-urllib3 $(VENV)-oldest $(VENV)-pythons

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "poolkit needs Python 3.10 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp file for each extra, older than pyproject.toml when the dependencies may have changed.
$(VENV)/.%: pyproject.toml $(VENV)/.made
	$(INSTALL) -e '.[$*]'
	@touch $@

# Environments of their own: other versions of the drivers, and pytest plugins that the drivers' suites want.
$(VENV)-conformance/.ready: pyproject.toml tests/conformance/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-input -e '.[demo]' -r tests/conformance/requirements.txt
	@touch $@

$(VENV)-conformance-urllib3/.ready: pyproject.toml tests/conformance/requirements-urllib3.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-input -e '.[demo]' -r tests/conformance/requirements-urllib3.txt
	@touch $@

$(VENV)-oldest/.ready: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-input -e '.[suite]' -r tests/oldest.txt
	@touch $@
