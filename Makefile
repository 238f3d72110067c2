# make demo    the whole way once: photographs -> dataset -> training -> where the time went
# make test    every check: ruff, mypy, pytest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SYSTEM := libopencv-dev libturbojpeg0-dev pkg-config
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

.PHONY: demo test lint types tests figures clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@$(BIN)/python recipes/demo.py

test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

tests: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

figures: $(VENV)/.installed
	$(BIN)/bench figures

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Debian and Ubuntu ship Python without ensurepip; python3-venv brings it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastload needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); pass PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv; } >/dev/null 2>&1 || \
	  { echo "Python's venv module is missing; run: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing fastload into $(VENV): torch with CUDA is about 5 GB, this takes some minutes"
	$(PIP) -e '.[demo]'
	@touch $@

# FFCV is compiled when it is installed: it needs a compiler, OpenCV and TurboJPEG.
$(VENV)/.installed-dev: $(VENV)/.installed
	@pkg-config --exists opencv4 libturbojpeg 2>/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq $(SYSTEM) g++ python3-dev; } >/dev/null 2>&1 || \
	  { echo "FFCV needs system packages; run: apt-get install $(SYSTEM) g++ python3-dev" >&2; exit 2; }
	$(PIP) -e '.[dev,dask,ffcv,hf,parquet,plot]'
	@touch $@
