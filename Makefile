# `make demo` and `make test` set up all they need in .venv; nothing outside the checkout is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out/code_licences
KERNELS := $(wildcard runtime/native/*.c runtime/native/*.h)
# Editable installs of mapped folders make setuptools warn about names that are right.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet

.PHONY: demo test lint typecheck unit soak mutants browser fuzz bench experiments setup setup-demo setup-bench setup-experiments clean help

help:
	@echo "make demo   train under a policy on real data, verify the ledger, show what was learned from what"
	@echo "make test   ruff, mypy, import contracts and every test"
	@echo "make soak   the long crash and tampering campaigns"
	@echo "make mutants  every promise of the docs broken on purpose: its tests must notice"
	@echo "make browser  reports as Chromium shows them"
	@echo "make fuzz   a million hostile inputs to every reader; FUZZ_INPUTS=N for another number"
	@echo "make bench  every benchmark; results in benchmarks/results/"
	@echo "make experiments  published results of gradient routing, under policies; minutes on two cores"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.demo: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.experiments

$(VENV)/.bench: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[dev,bench]'
	@touch $@ $(VENV)/.dev $(VENV)/.demo $(VENV)/.experiments

$(VENV)/.experiments: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[experiments]'
	@touch $@

setup: $(VENV)/.dev
setup-demo: $(VENV)/.demo
setup-bench: $(VENV)/.bench
setup-experiments: $(VENV)/.experiments

demo: setup-demo
	$(BIN)/python -m examples.code_licences --out $(OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/gradwarden check --strict policies
	$(BIN)/gradwarden fmt --check policies
	$(BIN)/gradwarden test policies

typecheck: setup
	$(BIN)/mypy

# One thread per worker: three workers share two cores, since some tests wait for processes of their own.
unit: setup
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal

test: lint typecheck unit

soak: setup
	$(BIN)/pytest -m soak --timeout 3600

mutants: setup
	$(BIN)/python -m tests.campaign.mutants --unmutated

# Needs the distribution's chromium, or chromium-headless-shell.
browser: setup
	$(BIN)/pytest -m browser

FUZZ_INPUTS ?= 1000000
fuzz: setup
	mkdir -p out
	$(BIN)/python -m tests.fuzz.campaign --inputs $(FUZZ_INPUTS) --out out/fuzz.json

bench: setup-bench
	$(BIN)/python -m benchmarks.policy_eval
	$(BIN)/python -m benchmarks.policy_eval_100
	$(BIN)/python -m benchmarks.plan_bench
	$(BIN)/python -m benchmarks.library_time
	$(BIN)/python -m benchmarks.policy_text
	$(BIN)/python -m benchmarks.check_many
	$(BIN)/python -m benchmarks.routing
	$(BIN)/python -m benchmarks.routing --grid
	$(BIN)/python -m benchmarks.routing --grid --narrow
	$(BIN)/python -m benchmarks.depth_batches
	$(BIN)/python -m benchmarks.compiled
	$(BIN)/python -m benchmarks.private_step
	$(BIN)/python -m benchmarks.ledger_bench
	$(BIN)/python -m benchmarks.verify_bench
	$(BIN)/python -m benchmarks.verify_million
	$(BIN)/python -m benchmarks.weights_bench
	$(BIN)/python -m benchmarks.trace_bench
	$(BIN)/python -m benchmarks.cold_start

experiments: setup-experiments
	$(BIN)/python -m examples.gradient_routing.digits
	$(BIN)/python -m examples.gradient_routing.two_domains
	$(BIN)/python -m examples.gradient_routing.leak
	$(BIN)/python -m examples.privacy_audit
	$(BIN)/python -m examples.memorization

clean:
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
