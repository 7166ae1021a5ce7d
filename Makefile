PYTHON ?= python3
BIN := .venv/bin

.PHONY: install run test test-slow check clean

run: install  ## learn five tasks of handwritten digits, with and without protection
	$(BIN)/pah run split-digits --beside finetune --overwrite

install: .venv/installed  ## the environment that `run` needs

test: .venv/developed  ## the fast tests
	$(BIN)/python -m pytest

test-slow: .venv/developed  ## those that take minutes
	$(BIN)/python -m pytest -m slow

check: .venv/developed  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[timm,report,ray,onnx,dev]'
	@touch $@
