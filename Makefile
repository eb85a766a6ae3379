# make train: a five-student family on real data, in minutes; make test: the whole suite. Both set up .venv first.
PYTHON ?= python3
RUN ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)
WORKERS ?= 2
VENV := .venv
READY := $(VENV)/.ready
NATIVE := setup.py $(wildcard csrc/*.cpp csrc/*/*.* csrc/*/*/*.*)

.PHONY: train test bench lint clean $(VENV)

train: $(READY)
	$(VENV)/bin/python -m oekd_fast.train --dataset digits --model resnet20 --epochs 26 --schedule cosine --learning-rate 0.2 \
		--baseline --output-dir $(RUN)

test: $(READY)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal

bench: $(READY)
	$(VENV)/bin/python -m bench.ops.ensemble_kd

lint: $(READY)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

$(VENV): $(READY)

# torch comes before the package: the extension is built with the torch that will run it.
$(READY): requirements.txt pyproject.toml $(NATIVE)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-build-isolation -e '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info oekd_fast/*.so
