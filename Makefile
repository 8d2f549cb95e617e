# Two commands: `make demo` and `make test`. Both make the environment first when it is missing.
VENV ?= .venv
PYTHON ?= python3
STORAGE ?= $(CURDIR)/runs
RECIPE ?= scenes
ARGS ?=
ifneq ($(words $(CURDIR) $(VENV)),2)
$(error make cannot work with blanks in a path: move the checkout "$(CURDIR)", or VENV, elsewhere)
endif
BIN := $(abspath $(VENV))/bin
PYTHON_IS_NEW := import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"raycap needs Python 3.11 or newer, this is {sys.executable} {v.major}.{v.minor}: make ... PYTHON=python3.12")

.PHONY: help install demo lint format test test-slow chaos clean

help:
	@echo "make demo       train a captioner on drawn scenes with SCST on Ray, and write a report (minutes)"
	@echo "                RECIPE=scenes  STORAGE=runs  ARGS=\"key=value ...\"  (RECIPE=flickr8k, photos: README)"
	@echo "make test       the tests (make test-slow: the long ones)"
	@echo "make chaos      100 kills in every run that must survive them: hours (RAYCAP_CHAOS_KILLS=12: fewer)"
	@echo "make lint       ruff and mypy"
	@echo "make install    the environment (VENV=.venv)"

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -c '$(PYTHON_IS_NEW)'
	@echo "making $(VENV): 7 GB of packages, a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	echo '*' > $(BIN)/../.gitignore
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

demo: install
	$(BIN)/python -m raycap.cluster.demo recipe=$(RECIPE) storage=$(STORAGE) $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: install
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

chaos: install
	RAYCAP_CHAOS_KILLS=$${RAYCAP_CHAOS_KILLS:-100} $(BIN)/python -m pytest tests/chaos -m slow --timeout 7200 $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
