# Needs python3 (3.11 or newer) and make; everything else is installed into .venv and .nox.
PYTHON ?= python3
NOX := .venv/bin/python -m nox --reuse-existing-virtualenvs --no-install
NEWEST := .nox/tests-5/bin/python
SETUP_FILES := setup.cfg pyproject.toml noxfile.py scripts/setup_environments.py scripts/fetch_transformers_tests.py $(filter-out constraints/vllm.txt,$(wildcard constraints/*.txt))

# pip runs once at a time in .venv.
.NOTPARALLEL:

.PHONY: bench help demo test test-versions test-vllm setup style quality checkpoint evidence clean python

help:
	@echo "make demo        ask the bundled checkpoint about the pictures in examples/"
	@echo "make test        style, types, docstrings, then every test on both transformers lines"
	@echo "make test-versions  oldest and newest transformers of both lines, each on what the others saved"
	@echo "make test-vllm   compare vLLM's server with generate, in .nox/vllm (ten minutes on two cores)"
	@echo "make setup       create both environments: .nox/tests-4 and .nox/tests-5"
	@echo "make style       rewrite the source in the project's format"
	@echo "make quality     style, spelling, types and docstrings, without the tests"
	@echo "make checkpoint  train the bundled checkpoint anew (an hour to an hour and a half on two cores)"
	@echo "make evidence    train guided experts and their controls alike, and report (hours on two cores)"
	@echo "make bench       every cost beside LLaVA's, in the same run (about 15 minutes on two quiet cores)"
	@echo "make clean       remove environments, caches and builds"

demo: .nox/ready-5
	@$(NEWEST) examples/ask.py

test: setup
	@$(NOX) --session quality tests

test-versions: | python
	@$(PYTHON) scripts/test_versions.py

test-vllm: .nox/ready-vllm
	@$(NOX) --session vllm

setup: .nox/ready-4 .nox/ready-5

style: .nox/ready-5
	@$(NEWEST) -m ruff check --fix --quiet . ; $(NEWEST) -m ruff format .

quality: .nox/ready-5
	@$(NOX) --session quality

# Beside transformers' LLaVA: on a GPU at 7B's shapes, else at a CPU's size in about 20 minutes.
# BENCH="--device cuda" is passed on; nothing else should run on the machine.
BENCH_WORK ?= /tmp
bench: .nox/ready-5
	@set -e; for name in decode prefill memory attention; do $(NEWEST) benchmarks/bench_$$name.py $(BENCH); done
	@$(NEWEST) benchmarks/count_memory.py
	@$(NEWEST) benchmarks/bench_load.py --work $(BENCH_WORK) $(BENCH)
	@$(NEWEST) benchmarks/bench_processor.py
	@$(NEWEST) benchmarks/profile_decode.py
	@$(NEWEST) benchmarks/report.py

checkpoint: .nox/ready-5
	@$(NEWEST) -m hyperllava_hf.training.digits_checkpoint

evidence: .nox/ready-5
	@$(NEWEST) -m hyperllava_hf.evidence

clean:
	rm -rf .venv .nox build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install Python 3.11 or newer, or name one: make PYTHON=..." >&2; exit 1; }

# Made anew when what decides its content changes; a second make installs nothing.
.nox/ready-%: $(SETUP_FILES) | python
	@$(PYTHON) scripts/setup_environments.py $*
	@touch $@

.nox/ready-vllm: constraints/vllm.txt scripts/prepare_vllm.py | .nox/ready-5
	@.venv/bin/python -m nox --reuse-existing-virtualenvs --install-only --session vllm
	@touch $@
