# Everything lives in .venv, which is made when it is missing or when what it is made from has changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# Some machines forbid Python to keep what it compiled: then each of the tests' hundreds of processes compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE

demo: $(READY)  ## lose and keep plasticity on real digits, and draw the chart
	$(BIN)/supple demo

test: $(READY)  ## every test that needs no accelerator
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(READY)  ## style, types and the floors of the architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation site, in site/; every reference must resolve
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

guard: $(READY)  ## whether a change made it slower; half a minute, ratios with wide margins
	$(BIN)/python benchmarks/guard.py

bench: $(READY)  ## how fast it is, against baselines and the machine; wants a quiet one, and most of an hour
	for network in mlp resnet18 vit-tiny gpt2; do \
		$(BIN)/python benchmarks/overhead.py --network $$network --rounds 15 --steps $$([ $$network = mlp ] && echo 20 || echo 1) \
			--out results/overhead/share-$$network.json; \
		$(BIN)/python benchmarks/overhead.py --within --network $$network --rounds 15 --steps $$([ $$network = mlp ] && echo 20 || echo 1) \
			--out results/overhead/within-$$network.json; \
	done
	$(BIN)/python benchmarks/performance.py

wheels: $(READY)  ## what benchmarks/gpu.py needs beside torch, NumPy and transformers, for Python 3.12 on Linux, in wheels/
	rm -rf wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps --constraint constraints.txt \
		--python-version 3.12 --implementation cp --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --dest wheels \
		polars polars-runtime-32 rich markdown-it-py mdurl pygments datasets dill multiprocess xxhash
	du --bytes --total --apparent-size wheels/*.whl

# Without --no-compile, pip would compile all 23,000 modules, for over a minute; Python compiles those that are imported.
# Python's own pip may be old: 23.2 takes three times as long as 26.3 to choose among the releases, a minute more.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[lab,ray,rl,dev,clients,docs]'
	touch $@

.PHONY: demo test lint docs guard bench wheels
