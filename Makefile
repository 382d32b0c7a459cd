# `make demo` and `make test` need nothing but Python 3.11+ with pip: they make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= fewshot/configs/cxgrad.py
RUN := $(VENV)/bin/python -m

.PHONY: install demo test slow data lint lock speed claims

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --constraint requirements.lock --editable '.[test,pretrained,notebooks]'
	touch $@

demo: install
	$(RUN) fewshot.main --config=$(CONFIG)

test: install  # few-shot apart from the others, whose programs have other fusions: common/cpu_fusions.py
	$(RUN) pytest -n 2 --dist worksteal --durations=40 --ignore=tests/fewshot
	$(RUN) pytest -n 2 --dist worksteal --durations=20 tests/fewshot

slow: install
	$(RUN) pytest -n 2 --dist worksteal -m slow --durations=60 --ignore=tests/fewshot
	$(RUN) pytest -n 2 --dist worksteal -m slow --durations=40 tests/fewshot

data: install  # the builders of data sets under TensorFlow's own test case
	$(RUN) pip install --quiet --constraint requirements.lock --editable '.[data]'
	$(RUN) pytest tests/common/data/test_builders.py

lint: install
	$(RUN) ruff check
	$(RUN) ruff format --check
	PATH="$(abspath $(VENV))/bin:$$PATH" $(RUN) pyright

lock: data  # the exact versions of this environment, without any address
	$(RUN) pip freeze --exclude-editable | grep -v ' @ ' > requirements.lock

speed: install
	$(RUN) pip install --quiet --constraint requirements.lock --editable '.[bench]'
	$(RUN) benchmarks.speed

claims: install
	$(RUN) benchmarks.claims
