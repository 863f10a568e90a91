# knowhow: `make demo` builds a specialist, `make test` checks everything. Both work on a fresh clone.

VENV  := .venv
BIN   := $(VENV)/bin
SIZE  ?= full
FLAGS ?=

# The first Python on the path that is new enough.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
RECIPE  := recipes/malware-triage.yaml
SMALL   := data.generate.train=400 data.generate.valid=120 data.generate.test=200 base.context=256 explain.examples=4 \
	adapt.0.steps=12 adapt.0.batch_tokens=2048 adapt.0.evaluate_every=6 evaluate.draws=200
TINY    := $(if $(filter tiny,$(SIZE)),$(foreach value,$(SMALL),--set $(value)))

.PHONY: demo test test-all lint docs bench clean

demo: $(VENV)/installed
	$(BIN)/knowhow build $(RECIPE) $(TINY) $(FLAGS)

test: $(VENV)/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not large" $(FLAGS)

test-all: $(VENV)/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(FLAGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy

docs: $(VENV)/installed
	$(BIN)/knowhow schema > docs/recipe.schema.json
	$(BIN)/python bench/laws.py --pages

bench: $(VENV)/installed-dev
	$(BIN)/python bench/audit_scale.py
	$(BIN)/python bench/kill_resume.py
	@test -n "$(KNOWHOW_DATA)" || echo "KNOWHOW_DATA is not set: the comparisons on real traces are left out"
	test -z "$(KNOWHOW_DATA)" || $(BIN)/python bench/real_traces_baseline.py "$(KNOWHOW_DATA)/malware/speakeasy_traces"

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "knowhow needs Python 3.11 or newer; this machine has $$(python3 --version 2>&1). Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing knowhow into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing knowhow and its test tools into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/installed
