# Everything lives in .venv, which is made when it is missing or when what it is made from has changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

demo: $(READY)  ## lose and keep plasticity on real digits, and draw the chart
	$(BIN)/supple demo

test: $(READY)  ## every test that needs no accelerator
	$(BIN)/python -m pytest --numprocesses 2

lint: $(READY)  ## style, types and the floors of the architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation site, in site/; every reference must resolve
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## what the regularizers cost a training step; wants a quiet machine
	$(BIN)/python benchmarks/overhead.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lab,ray,rl,dev,clients,docs]'
	touch $@

.PHONY: demo test lint docs bench
