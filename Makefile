PYTHON ?= python3
REQUIREMENTS ?= requirements/cpu.txt
BIN := .venv/bin

.PHONY: demo test lint setup bench-setup docs clean

demo: setup  ## train AutoInt on synthetic data with five tables; ends with a table and a plot
	$(BIN)/python -m bench.demo

test: setup  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: setup  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

setup: .venv/.ready  ## virtual environment with the pinned closure, and the command .venv/bin/embtables

.venv/.ready: $(wildcard requirements/*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info[:2] >= (3, 11) or sys.exit("embtables needs Python 3.11 or later; run make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r $(REQUIREMENTS)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

bench-setup: setup .venv-peers/fuxictr/.ready .venv-peers/deepctr/.ready  ## libraries that bench/ compares with

.venv-peers/%/.ready: requirements/bench/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

report: setup  ## the page of the sweeps in bench/results: report/index.html
	$(BIN)/embtables report bench/results/sweep_*.json -o report

docs: .venv-docs/.ready  ## pages of docs/ as HTML: site/index.html
	.venv-docs/bin/mkdocs build --quiet --strict

.venv-docs/.ready: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

clean:
	rm -rf .venv .venv-peers .venv-docs demo runs sweeps prepared packed report site
