# Everything runs in a virtual environment of its own; CI runs these same commands.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CONFIG ?= configs/minilm.yaml

# Threads that wait for one another sleep instead of turning in circles: docs/decisions/0014.
export GOMP_SPINCOUNT ?= 2000

.PHONY: setup serve test test-slow test-gpu check bench bench-peers bench-generation loadtest loadtest-chat clean

setup: $(VENV)/.dev

serve: $(VENV)/.serve
	$(BIN)/padless --config $(CONFIG)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m bench

# Makes an environment for each peer on the first run.
bench-peers: $(VENV)/.dev
	$(BIN)/python -m bench.peers

bench-generation: $(VENV)/.dev
	$(BIN)/python -m bench.generation

loadtest: $(VENV)/.dev
	$(BIN)/python -m loadtest --serve $(CONFIG) --short --out loadtest/results

loadtest-chat: CONFIG = configs/chat.yaml
loadtest-chat: $(VENV)/.dev
	$(BIN)/python -m loadtest --serve $(CONFIG) --workload chat --connections 16 --short --out loadtest/results/chat

# What serving needs, and what developing needs on top. Made anew when pyproject.toml changes.
$(VENV)/.serve: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/pip install --editable '.[demo,dev,loadtest]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
