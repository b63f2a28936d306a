# Needs Python >= 3.10 with pip and venv. `make help` lists the targets.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= auto
EXTRAS := test,demo,dev,docs

BIN   := $(VENV)/bin
STAMP := $(VENV)/.setup-done
WHEEL_ENV := build/wheel-env
WHEEL_TESTS := build/wheel-tests
# What is tested there is the checkout: its documents, its benchmarks, its source.
OF_CHECKOUT := $(patsubst %,tests/test_%.py,docs readme package doctests) tests/benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types docs build check-wheel clean distclean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp holds a hash of all that the environment was made from, and is written last: an
# unchanged environment is left alone, a changed or half-finished one is brought up to date.
setup:  ## Make or update the environment in $(VENV)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("captum_clustered needs Python >= 3.10, but $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.12 ..." % (v[0], v[1]))'
	@set -e; \
	wanted=$$({ $(PYTHON) -VV; pwd; echo '$(EXTRAS)'; cat pyproject.toml; grep '^__version__' captum_clustered/__init__.py; } \
		| $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'); \
	if [ "$$(cat '$(STAMP)' 2>/dev/null)" = "$$wanted" ] && '$(BIN)/python' -c '' 2>/dev/null; then exit 0; fi; \
	if [ -e '$(VENV)' ] && [ ! -e '$(VENV)/pyvenv.cfg' ]; then \
		echo '$(VENV) is there but is no virtual environment: move it away, or name another place (make VENV=...).' >&2; exit 1; \
	fi; \
	rm -f '$(STAMP)'; \
	echo 'Setting up $(VENV). PyTorch is large: the first time this takes some minutes.'; \
	if [ "$$('$(BIN)/python' -VV 2>/dev/null)" != "$$($(PYTHON) -VV)" ] || ! '$(BIN)/python' -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --clear '$(VENV)'; \
	fi; \
	'$(BIN)/python' -m pip install -qq --disable-pip-version-check --editable '.[$(EXTRAS)]'; \
	echo "$$wanted" > '$(STAMP)'

demo: setup  ## Explain two photographs; the pictures go to demo-output/
	$(BIN)/captum-clustered demo --out demo-output

test: setup  ## Run the tests (JOBS=N for N processes)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4

lint: setup  ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## Put the code into format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## Check the types
	$(BIN)/mypy

docs: setup  ## Build the documents in build/docs; runs the tutorials, and a warning is an error
	$(BIN)/sphinx-build -W --keep-going -b html docs build/docs

build: setup  ## Build the wheel and the source distribution in dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

# The wheel gets an environment of its own, which finds the dependencies of $(VENV) through a path
# file: no second download of PyTorch. Path files in a directory found in this way are not read,
# so the editable install, and with it the checkout, stays out of sight.
WHEEL_PIP := $(BIN)/python -m pip --disable-pip-version-check --python $(WHEEL_ENV)/bin/python

check-wheel: build  ## Install the wheel in an empty environment and run the tests there
	rm -rf $(WHEEL_ENV)
	$(BIN)/python -m venv --without-pip $(WHEEL_ENV)
	$(WHEEL_PIP) install --quiet --no-index --no-deps dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sep="\n")' \
		> "$$($(WHEEL_ENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	$(WHEEL_PIP) check
	cd $(WHEEL_ENV) && bin/python -I -c 'import pathlib, sys, captum_clustered as c; sys.exit(not pathlib.Path(c.__file__).is_relative_to(sys.prefix) and f"the checkout was imported: {c.__file__}")'
	cd $(WHEEL_ENV) && bin/captum-clustered --version
	rm -rf $(WHEEL_TESTS)
	mkdir -p $(WHEEL_TESTS)
	cp -r pyproject.toml tests $(WHEEL_TESTS)
	cd $(WHEEL_TESTS) && rm -r $(OF_CHECKOUT)
	cd $(WHEEL_TESTS) && '$(CURDIR)/$(WHEEL_ENV)/bin/python' -m pytest --quiet --numprocesses $(JOBS) --maxprocesses 4

clean:  ## Remove what the other targets leave, but not the environment
	rm -rf build dist demo-output docs/api .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find captum_clustered tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove the environment too
	rm -rf '$(VENV)'
