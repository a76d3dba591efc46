# Everything needs only Python (>= 3.11) and make; the first target called makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per worker: two workers on two cores, and numbers that do not depend on the machine.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKERS ?= 2
# Instruction sets of other processors: ATen, oneDNN, MKL and numpy's OpenBLAS each listen to a variable of their own.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
PLAIN := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem
NUMERIC := tests/golden tests/unit tests/property tests/leak tests/resume

.PHONY: install demo test test-all lint format bench docs figures same-results clean
.DEFAULT_GOAL := install

install: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## the names of new emoji, year by year, with three methods: a look, a table and a report
	$(BIN)/everclip demo

test: install  ## every tier, the exhaustive versions left out
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS)

test-all: install  ## every test that needs neither a GPU nor private data, the numeric ones as other processors compute
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m "not shared_data and not gpu"
	$(MAKE) test-capabilities

test-capabilities: install  ## the tiers that hold numbers, with AVX2 and without vector instructions
	$(TEST_ENV) $(AVX2) $(BIN)/python -m pytest -n $(WORKERS) $(NUMERIC)
	$(TEST_ENV) $(PLAIN) $(BIN)/python -m pytest -n $(WORKERS) $(NUMERIC)

mutants: install  ## how many small faults in methods, evaluation and modules the tests notice; by hand, not in CI
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mutants]'
	$(TEST_ENV) $(BIN)/python scripts/mutants.py --sample $(SAMPLE) --seed $(SEED)

same-results: install  ## whether small runs of every preset still give what they gave (scripts/same_results.py)
	$(BIN)/python scripts/same_results.py --jobs $(WORKERS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## ratios against named baselines, one table per benchmark
	$(BIN)/python benchmarks/run_all.py

docs: install  ## the documentation as a site, in site/; needs no network once everything is installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

figures: install  ## measured figures of README, docs and cards, and the page of metrics
	$(BIN)/python scripts/figures.py
	$(BIN)/python scripts/write_metrics.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache mutants
