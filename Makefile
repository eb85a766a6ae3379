# make train: a five-student family on real data, in minutes; make test: the whole suite; make docs: the site. Each sets
# up .venv first.
PYTHON ?= python3
RUN ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)
# One more than the cores of a small machine: tests of several processes wait for each other.
WORKERS ?= 3
# BENCH_OPTIONS=--benchmark-save=before, then BENCH_OPTIONS=--benchmark-compare, show what a change does to the loss.
BENCH ?= bench/ops/test_ensemble_kd.py
BENCH_OPTIONS ?=
VENV := .venv
READY := $(VENV)/.ready
NATIVE := setup.py $(wildcard csrc/*.cpp csrc/*/*.* csrc/*/*/*.*)

.PHONY: train test test-quick kernels bench lint docs wheel clean $(VENV)

train: $(READY)
	$(VENV)/bin/python -m oekd_fast.train --dataset digits --model resnet20 --epochs 26 --schedule cosine --learning-rate 0.2 \
		--baseline --output-dir $(RUN)

test: $(READY)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal

# Each test with its first parameters, without slow tests and those that interpret Triton kernels.
test-quick: $(READY)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal --quick

# Compiles the Triton kernels for NVIDIA GPUs, which needs none, and fails if one spills or has narrow accesses.
kernels: $(READY)
	$(VENV)/bin/python -m bench.codegen

bench: $(READY)
	$(VENV)/bin/python -m pytest $(BENCH) --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-sort=name \
		$(BENCH_OPTIONS)

lint: $(READY)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

# Warnings are errors: a broken link, a missing reference. The requirement is met by the checkout that is installed, so
# that only the packages of its extra are added.
docs: $(READY)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q 'oekd_fast[docs]'
	$(VENV)/bin/python -m sphinx -W --keep-going -q -E -b html docs docs/_build/html
	@echo "The pages are in docs/_build/html/index.html."

# The source distribution, and from it the wheel. Its kernels fit every torch from 2.10 on, its executor the one in .venv.
wheel: $(READY)
	$(VENV)/bin/python -m build --no-isolation

$(VENV): $(READY)

# torch comes before the package: the executor is built with the torch that will run it.
$(READY): requirements.txt pyproject.toml $(NATIVE)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-build-isolation -e '.[dev]'
	touch $@

clean:
	rm -rf build dist docs/_build *.egg-info oekd_fast/*.so
