# make demo   distils a classifier of handwritten digits and shows whether the teacher helped (some minutes, no download
#             beside the packages)
# make test   lint, types and tests: what CI runs
# make bench  what a step costs beside its floor and its peers (minutes; leave the machine alone meanwhile)
#
# All set up their own environment, once. On Linux the registry's torch comes with CUDA; for the smaller build
# without it: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := python -m pip install --quiet --disable-pip-version-check

# The oldest versions that the tests pass with. Before 5.18 Transformers hides AutoImageProcessor where there is no
# torchvision (https://github.com/huggingface/transformers/issues/48607).
# torch, numpy and the like are newer than these, and warn about them, so here warnings are no errors.
OLDEST_VENV := .venv-oldest
OLDEST_INSTALLED := $(OLDEST_VENV)/.installed
OLDEST := transformers==5.18.0 accelerate==1.7.0 datasets==4.0.0 huggingface_hub==1.31.0 peft==0.21.0 evaluate==0.4.6

# One thread each: two threads beside a busy process cost many times more than they give on small models.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: install demo test test-all test-oldest bench lint types format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) --constraint constraints.txt $(TORCH)
	$(BIN)/$(PIP) --constraint constraints.txt --editable '.[test,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/hfdistill run digits

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

test: lint types
	$(TEST) -m 'not slow'

test-all: lint types
	$(TEST)

test-oldest: $(OLDEST_INSTALLED)
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -n 2 -m 'not slow' -o filterwarnings=default

$(OLDEST_INSTALLED): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/$(PIP) --constraint constraints.txt $(TORCH)
	$(OLDEST_VENV)/bin/$(PIP) --editable '.[test]' $(OLDEST)
	touch $@

# ModelOpt, TRL and Liger, peers, have an environment of their own. ModelOpt imports requests without asking for it;
# Liger asks for triton, which it can do without on a processor.
BENCH_VENV := .venv-bench
BENCH_INSTALLED := $(BENCH_VENV)/.installed

bench: $(BENCH_INSTALLED)
	$(BENCH_VENV)/bin/python tests/benchmarks/step.py

$(BENCH_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/$(PIP) --constraint constraints.txt $(TORCH)
	$(BENCH_VENV)/bin/$(PIP) --constraint constraints.txt --editable . 'nvidia-modelopt==0.47.*' 'trl==1.16.*' requests
	$(BENCH_VENV)/bin/$(PIP) --no-deps 'liger-kernel==0.8.5'
	touch $@

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(BENCH_VENV) .mypy_cache .pytest_cache .ruff_cache dist
