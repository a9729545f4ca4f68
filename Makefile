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
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

guard: $(READY)  ## whether a change made it slower; a minute, ratios with wide margins
	$(BIN)/python benchmarks/guard.py

bench: $(READY)  ## how fast it is, against baselines and the machine; wants a quiet one, and most of an hour
	for network in mlp resnet18 vit-tiny gpt2; do \
		$(BIN)/python benchmarks/overhead.py --network $$network --rounds 15 --steps $$([ $$network = mlp ] && echo 20 || echo 1) \
			--out results/overhead/share-$$network.json; \
		$(BIN)/python benchmarks/overhead.py --within --network $$network --rounds 15 --steps $$([ $$network = mlp ] && echo 20 || echo 1) \
			--out results/overhead/within-$$network.json; \
	done
	$(BIN)/python benchmarks/performance.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lab,ray,rl,dev,clients,docs]'
	touch $@

.PHONY: demo test lint docs guard bench
