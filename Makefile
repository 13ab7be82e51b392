# Python 3.11+ and make are all a machine needs. CI runs `make test` and nothing else.
PYTHON ?= python3
BIN := .venv/bin

# The checkout has folders called `proto` and `kernels`: never import from the current directory.
export PYTHONSAFEPATH := 1

.PHONY: help demo demo-seeds test format clean

help:  ## show this text
	@grep -E '^[a-z-]+: .*## ' Makefile | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

demo: .venv/installed  ## 8 daemons on this machine, 2 of them liars, one crash: a live table, a verdict and a plot
	$(BIN)/murmurate demo

demo-seeds: .venv/installed-test  ## 6 daemons fine-tune a pretrained encoder, one byte per gradient
	$(BIN)/murmurate demo seeds

test: .venv/installed-test  ## everything CI runs: style, types, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/pytest -n 2

format: .venv/installed-test  ## let ruff put the source into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the virtual environment, caches and built packages
	rm -rf .venv dist .pytest_cache .ruff_cache .hypothesis

# Installing again is skipped while these two files are older than the stamp.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps byzfl  # why: see pyproject.toml
	@touch .venv/installed $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("murmurate needs Python 3.11 or newer, and \
	$(PYTHON) is %d.%d: try `make PYTHON=python3.11 $(MAKECMDGOALS)`" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }  # half a .venv would pass for a whole one
