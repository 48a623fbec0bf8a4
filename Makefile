# make demo    the whole market on this machine, in one command
# make test    every test but those that take minutes, which are make test-long      make test-quick   without the slow ones
# make check   lint, form, types, tests: what CI runs, and more      make bench   benchmarks (bench-execution: a run's; bench-matching, bench-network)
# make simulate SEEDS=1000   whole markets on one seed each, with faults drawn from it
# make contracts   compile contracts/ anew into the artefacts that the wheel carries; fuzz-, mutate- and break-contract test it
# Nothing needs to be installed first but Python 3.11+ with venv; everything of ours lands in .venv.

SHELL := /bin/sh
export PATH := $(or $(PATH),/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
# Some packages' build scripts ask for a home directory even where a user has none.
export HOME := $(or $(HOME),$(shell getent passwd "$$(id -u)" | cut -d: -f6),$(CURDIR))
# The newest Python that fits, unless one is named: make PYTHON=/opt/python3.13/bin/python3
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
  if $$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
  then command -v $$name; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

SEEDS ?= 1000
# Where no tests are named, those that use no more than a process run beside the others.
PYTEST = $(BIN)/python $(if $(TESTS),-m pytest,tests/run.py)

.PHONY: demo test test-quick test-long check bench bench-execution bench-matching bench-network simulate simulate-network contracts contracts-venv fuzz-contract mutate-contract break-contract break-defences fuzz hostile churn clean venv

demo: $(VENV)/installed
	@$(BIN)/hansa demo $(DEMO)

test: $(VENV)/installed-dev
	$(PYTEST) -m "not long" $(TESTS)

test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m long $(TESTS)

test-quick: $(VENV)/installed-dev
	$(PYTEST) -m "not slow and not long" $(TESTS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p hansa
	$(PYTEST) -m "not long" $(TESTS)

bench: $(VENV)/installed-dev
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

bench-execution: $(VENV)/installed-dev
	$(BIN)/python tests/bench/bench_execution.py $(BENCH)

# Minutes; with BENCH=--full all published seeds and all jobs of the trace.
bench-matching: $(VENV)/installed-dev
	@for bench in matching packing trace; do $(BIN)/python tests/bench/bench_$$bench.py $(BENCH) || exit 1; done

# Ratios to a bare TLS socket and a bare trio socket, and how fast nodes find adverts; minutes.
bench-network: $(VENV)/installed-dev
	$(BIN)/python tests/bench/bench_network.py $(BENCH)
	@if [ -f tests/bench/bench_discovery.py ]; then $(BIN)/python tests/bench/bench_discovery.py; fi

# The contracts' compiler, apart from our own environment: it pins other versions of what we use.
CONTRACTS_VENV := build/contracts-venv

contracts-venv: $(CONTRACTS_VENV)/installed

$(CONTRACTS_VENV)/installed:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(CONTRACTS_VENV)
	@$(CONTRACTS_VENV)/bin/python -m pip --disable-pip-version-check --quiet install vyper==0.4.3
	@touch $@

contracts: $(CONTRACTS_VENV)/installed
	$(CONTRACTS_VENV)/bin/python contracts/compile.py

# The contract against its model, the suite against mutants of the contract (half an hour; a run that was stopped goes on),
# and each attack's test against a contract without the defence.
fuzz-contract: $(VENV)/installed-dev
	HANSA_FUZZ_EXAMPLES=$(or $(EXAMPLES),2000) $(BIN)/python -m pytest -q -s tests/contracts/test_escrow_fuzz.py

mutate-contract: $(VENV)/installed-dev $(CONTRACTS_VENV)/installed
	$(BIN)/python tests/contracts/mutate.py

break-contract: $(VENV)/installed-dev $(CONTRACTS_VENV)/installed
	$(BIN)/python tests/contracts/without_defences.py

# Each attack's test against the code without the defence: minutes.
break-defences: $(VENV)/installed-dev
	$(BIN)/python tests/attacks/undefended.py

# What strangers may do to a node (docs/hostile-peers.md). Fuzzing goes on until it is stopped, or for SECONDS; READER names one reader.
fuzz: $(VENV)/installed-dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) install -e '.[dev,fuzz]'
	$(BIN)/python tests/hostile/fuzz.py $(if $(READER),--reader "$(READER)") -- -max_total_time=$(or $(SECONDS),0)

# A hundred thousand hostile interactions beside an honest peer (some eight minutes), and half an hour of nodes that come and go.
hostile: $(VENV)/installed-dev
	$(BIN)/python tests/hostile/siege.py $(HOSTILE)

churn: $(VENV)/installed-dev
	$(BIN)/python tests/hostile/churn.py --minutes $(or $(MINUTES),30)

simulate: $(VENV)/installed-dev
	$(BIN)/python tests/simulation/simulate.py --seeds $(SEEDS)
	$(BIN)/python tests/simulation/simulate.py --players --seeds $$(($(SEEDS) / 10))

# Minutes: a thousand nodes' books, and a day of nodes that come and go.
simulate-network: $(VENV)/installed-dev
	$(BIN)/python tests/simulation/simulate_network.py --nodes 1000
	$(BIN)/python tests/simulation/simulate_network.py --nodes 16 --hours 24

venv: $(VENV)/installed-dev

# One environment; the stamps say what was installed into it, and go stale when the dependencies change.
$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Installing Hansa into $(VENV) (the first time takes a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Installing Hansa and what its tests need into $(VENV) (the first time takes a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -e '.[dev]'
	@$(PIP) install --no-deps --upgrade --target $(VENV)/amd 'amdsmi>=7.0'  # apart: Ray fails where it is and AMD's library is not
	@touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
