PYTHON ?= python3
BIN := .venv/bin

.PHONY: install run test test-slow test-browser check docs clean

run: install  ## learn five tasks of handwritten digits, with and without protection
	$(BIN)/pah run split-digits --beside finetune --overwrite

install: .venv/installed  ## the environment that `run` needs

test: .venv/developed  ## the fast tests
	$(BIN)/python -m pytest

test-slow: .venv/developed  ## those that take minutes
	$(BIN)/python -m pytest -m slow

test-browser: .venv/developed  ## reports in a real browser; as root, Debian's Chromium is installed where there is none
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[browser]'
	command -v chromium >/dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; }
	$(BIN)/python -m pytest -m browser

check: .venv/developed  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/developed  ## the documentation, as a site in site/
	$(BIN)/python tools/docsite.py

clean:
	rm -rf .venv build site .cache .mypy_cache .pytest_cache .ruff_cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[timm,report,ray,onnx,track,docs,dev]'
	@touch $@
