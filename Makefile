# Everything runs in a virtual environment of its own; CI runs these same commands.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CONFIG ?= configs/minilm.yaml
# The versions that were tested together; empty: the newest that pyproject.toml allows.
CONSTRAINT ?= --constraint constraints.txt
# Processes that run tests side by side.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Threads that wait for one another sleep instead of turning in circles: docs/decisions/0014.
export GOMP_SPINCOUNT ?= 2000
# Texts are tokenised on the thread that asks, as in the server's processes: server/text/tokenizer.py.
export TOKENIZERS_PARALLELISM ?= false
# Each of the processes that tests start would compile all it imports, where images forbid Python to keep that.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup serve test test-slow test-gpu test-chaos test-clients test-schema test-upgraded test-newest
.PHONY: constraints check bench bench-gpu bench-peers bench-generation loadtest loadtest-chat clean

setup: $(VENV)/.dev

serve: $(VENV)/.serve
	$(BIN)/padless --config $(CONFIG)

test: $(VENV)/.dev
	$(PYTEST) -m "not slow and not gpu and not schema and not clients"

# Faults under load, one after another; each prints what was sent, answered, refused and lost.
test-chaos: $(VENV)/.dev
	$(BIN)/python -m pytest -m chaos -s tests/chaos

# Other projects' clients against the server. Makes environments for them on the first run.
test-clients: $(VENV)/.dev
	$(BIN)/python -m pytest -m clients tests/clients

# 2,000 examples of every route, made from the OpenAPI document.
test-schema: $(VENV)/.dev
	$(BIN)/python -m pytest -m schema tests/server/test_schema.py

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu and not schema and not clients"

# In several processes: most of the time goes into compiling kernels.
test-gpu: $(VENV)/.dev
	$(PYTEST) -m gpu

# The server's tests with the newest versions of what it imports, torch excepted, laid over the others.
test-upgraded: $(VENV)/.dev
	rm -rf build/upgraded && mkdir -p build
	$(BIN)/python -c "$(LIST_DEPENDENCIES)" > build/upgraded.txt
	$(BIN)/pip install --quiet --no-compile --target build/upgraded --requirement build/upgraded.txt
	PYTHONPATH=build/upgraded $(PYTEST) -m "not slow and not gpu and not schema and not clients" tests/server

LIST_DEPENDENCIES = import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*(each for each in project['dependencies'] if not each.startswith('torch')), sep='\n')

# All short tests, in an environment of its own with the newest versions of everything.
test-newest:
	rm -rf build/newest
	$(MAKE) test VENV=build/newest CONSTRAINT=

# After `make test-newest` has passed: those versions become the tested ones. A local build's +cpu is no part of them.
constraints:
	{ grep '^#' constraints.txt; build/newest/bin/pip freeze --all --exclude-editable | sed '/^pip==/d; s/+.*//'; } \
		> build/constraints.txt
	mv build/constraints.txt constraints.txt

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m bench

# Makes an environment for each peer on the first run.
bench-peers: $(VENV)/.dev
	$(BIN)/python -m bench.peers

# Checks and times everything on a CUDA device, within nine minutes: BENCH_GPU="--budget-s 120 --parts kernels" does less.
bench-gpu: $(VENV)/.dev
	$(BIN)/python -m bench.gpu $(BENCH_GPU)

bench-generation: $(VENV)/.dev
	$(BIN)/python -m bench.generation

loadtest: $(VENV)/.dev
	$(BIN)/python -m loadtest --serve $(CONFIG) --short --out loadtest/results

loadtest-chat: CONFIG = configs/chat.yaml
loadtest-chat: $(VENV)/.dev
	$(BIN)/python -m loadtest --serve $(CONFIG) --workload chat --connections 16 --short --out loadtest/results/chat

# What serving needs, and what developing needs on top. Brought up to date when one of these two files changes.
$(VENV)/.serve: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(CONSTRAINT) --editable '.[demo]'
	$(BIN)/python -m runtime.backends.cpu.build
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/pip install $(CONSTRAINT) --editable '.[demo,dev,loadtest]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
