# Needs Python >= 3.11 and nothing else: everything is installed into .venv. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
ALL := $(VENV)/.installed-all
SPATIAL := .venv-spatial/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Compiled programs, and modules, outlive the process: hundreds are started, and the second `make test` is much faster.
TEST_ENV := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.jax_cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2 \
  PYTHONDONTWRITEBYTECODE=

# Files of tests side by side, one a core, at most four: a test's programs are compiled by a core each.
WORKERS := --numprocesses=auto --maxprocesses=4 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help install quickstart her2st lint test test-all claims clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  PYTHON=/path/to/python3.x chooses the interpreter of .venv (now: $(PYTHON))"

install: $(RUNTIME) ## .venv with tario and what its jobs need

quickstart: $(RUNTIME) ## virtual patients, training, gene maps, report: within 12 minutes on two cores
	$(BIN)/tario run --config=configs/quickstart.py --workdir=runs/quickstart

her2st: $(RUNTIME) ## the same on real breast tumours (TARIO_REAL_DATA, else ../shared/data)
	TARIO_REAL_DATA=$${TARIO_REAL_DATA:-../shared/data} $(BIN)/tario run --config=configs/her2st.py --workdir=runs/her2st

lint: $(DEV) ## ruff, its format, and the floors of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

test: lint ## lint and the fast tests
	$(TEST_ENV) $(BIN)/python -m pytest -q -m "not slow" $(WORKERS)

test-all: lint $(ALL) $(SPATIAL) ## lint and every test, with the compiler for TPUs, the trackers and SpatialData (1 GB more)
	$(TEST_ENV) $(BIN)/python -m pytest -q $(WORKERS)
	$(TEST_ENV) $(dir $(SPATIAL))bin/python -m pytest -q tests/predict/test_map_exports.py -k spatialdata

claims: $(DEV) ## measure what is claimed: ONLY=group,group/name … (* allowed); LONG=1 runs the long ones too
	$(BIN)/python tests/claims/run.py $(if $(ONLY),--only='$(ONLY)') $(if $(LONG),--long)

clean: ## removes .venv, caches and runs
	rm -rf $(VENV) $(dir $(SPATIAL)) runs .jax_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find tario_jax tests configs launch -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than pyproject.toml once its extras are in, so a second call installs nothing.
$(RUNTIME): pyproject.toml | $(BIN)/pip
	@echo "installing tario-jax into $(VENV) (a minute or two, once)"
	@$(PIP) -e '.[io,eval,export]'
	@touch $@

$(DEV): pyproject.toml | $(BIN)/pip
	@echo "installing tario-jax with its test tools into $(VENV) (a minute or two, once)"
	@$(PIP) -e '.[io,eval,export,dev]'
	@touch $(RUNTIME) $@

$(ALL): $(DEV)
	@echo "installing the compiler for TPUs and the trackers into $(VENV) (800 MB, once)"
	@$(PIP) -e '.[tpu,track,docs]'
	@touch $@

# Apart: what SpatialData needs of botocore is older than what the tests of object stores need.
$(SPATIAL): pyproject.toml | $(BIN)/pip
	@echo "installing SpatialData into $(dir $@) (a minute or two, once)"
	@$(BIN)/python -m venv $(dir $@)
	@$(dir $@)bin/python -m pip install --quiet --disable-pip-version-check -e '.[io,spatial]' pytest pytest-timeout
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON): not found; tario-jax needs Python >= 3.11: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); tario-jax needs Python >= 3.11: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv) or give another PYTHON=" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
