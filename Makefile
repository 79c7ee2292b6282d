# Everything runs from .venv, which `install` makes. Install steps read nothing from stdin (it may
# be a script for the shell) and write to stderr (stdout belongs to what that script prints).

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --no-input
STAMP  := $(VENV)/.installed
HOURS  ?= 8

.DEFAULT_GOAL := help
.PHONY: help install run models models-full check format test test-full bench bench-limits soak docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with everything in it, at the versions of requirements.lock
	@:

# torch alone and first: the longest download, and what the others must agree with. Bytecode is
# left to the first import: compiling all of torch would double the time.
$(STAMP): requirements.lock pyproject.toml
	@exec </dev/null >&2; set -e; \
	$(PYTHON) -c 'import sys; sys.exit("llmos needs Python 3.11 or newer, this is " \
	    + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'; \
	echo "llmos: installing into $(VENV), once"; \
	rm -f $(STAMP); \
	$(PYTHON) -m venv $(VENV); \
	$(PIP) install --no-compile "$$(grep '^torch==' requirements.lock)"; \
	$(PIP) install --quiet --no-compile -r requirements.lock; \
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .; \
	touch $(STAMP); \
	echo "llmos: installed"

run: $(STAMP) ## everything from nothing to a prompt: install, model, kernel, llmsh
	@exec $(PY) -m userland.firstrun $(ARGS)

models: $(STAMP) ## fetch the model that the tests use
	@$(VENV)/bin/llmos pull smollm2 </dev/null >&2

models-full: models ## fetch those that only the full tests use; they are skipped without
	@$(VENV)/bin/llmos pull gemma3 </dev/null >&2

check: $(STAMP) ## lint, format, types, import contracts
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

format: $(STAMP) ## rewrite the sources as `check` wants them
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

test: models ## behaviour and counts, never seconds
	@$(PY) -m pytest $(ARGS)

test-full: models-full ## all of it, with the minutes on a real model
	@$(PY) -m pytest -m "" $(ARGS)

bench: models ## one JSON line a result
	@$(PY) bench/run.py $(ARGS)

bench-limits: models ## assert times and ratios, best of five
	@$(PY) bench/run.py --limits $(ARGS)

soak: models ## HOURS=8 of it, on a quiet machine
	@$(PY) bench/soak.py --hours $(HOURS) $(ARGS)

docs: $(STAMP) ## write the generated pages of docs/ again
	@$(PY) docs/make_syscalls.py
	@$(PY) docs/make_schemas.py
	@$(PY) docs/make_errors.py

clean: ## caches and build outputs; .venv and models stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find kernel syscalls drivers userland tests bench docs -name __pycache__ -type d -prune -exec rm -rf {} +
