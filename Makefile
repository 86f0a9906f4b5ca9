# Needs Python 3.11+ with venv, and make. Everything else comes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := transport vramancer_cli commands build_scripts bench fuzz tests

NATIVE := vramancer_cli/engine/native
NATIVE_SOURCES := $(wildcard $(NATIVE)/*.cpp $(NATIVE)/*.h)

.PHONY: setup demo families test properties faults check format model report fuzz quality binary smoke wheel test-wheel clean
.PHONY: native check-native
.PHONY: bench-binary bench-bulk bench-context bench-drafting bench-load bench-quant bench-recovery bench-threads

setup: $(READY)

# torch first and alone: another version, or a range, may pull several GB of CUDA packages.
$(READY): pyproject.toml constraints.txt setup.py $(NATIVE_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + " (make PYTHON=python3.12)" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 1 GB; some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Three real nodes on this machine share the built-in model and answer one question. ONCE=1: then stop.
# PORT=5050: another port for the API. NODES=1: one node alone, to compare.
demo: $(READY)
	@$(BIN)/python -m build_scripts.demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT)) $(if $(NODES),--nodes $(NODES))

# Whole files side by side, in order: the long ones, of real processes, come early. WORKERS=0: one after the other.
WORKERS ?= auto
test: $(READY)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# A hundred thousand random steps of block pool, scheduler and two stages' block tables; `make test` runs a few. Minutes.
properties: $(READY)
	@VRM_LONG=1 $(BIN)/python -m pytest tests/vramancer_cli/scheduling

# Real nodes killed, stopped, drained and started again in the middle of answers, and hundreds of random lives of a
# simulated cluster. SEEDS=n: so many lives. VRM_SEED=n: that one again. Minutes; docs/faults.md says what is expected.
SEEDS ?= 300
HURT := survival faults cluster devices trust_life
faults: $(READY)
	@VRM_FAULTS=1 VRM_SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/simulation $(addprefix tests/system/test_,$(HURT:=.py))

# Garbage for the frame parser, the handshakes and the API; SEED=n repeats a run, findings lie in fuzz/crashes/. Minutes.
FRAMES ?= 1000000
HANDSHAKES ?= 20000
REQUESTS ?= 20000
fuzz: $(READY)
	@$(BIN)/python -m fuzz all --frames $(FRAMES) --handshakes $(HANDSHAKES) --requests $(REQUESTS) $(if $(SEED),--seed $(SEED))

# Every family of transformers, split at every layer, against transformers itself; writes docs/families.md. Some 20 minutes.
# A run that was stopped goes on where it was. ONLY="llama gemma2": these, and nothing is written.
families: $(READY)
	@$(BIN)/python -m tests.helpers.family_table $(ONLY)

check: $(READY) check-native
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/pyright
	@$(BIN)/lint-imports

# The native kernels alone, built again in place after a change; a warning is an error here, though not in an install.
native:
	@CFLAGS="-Wall -Wextra -Werror" $(BIN)/python setup.py --quiet build_ext --inplace --force
	@test -f $(NATIVE)/kernels.so

# They compile without a warning, and torch_abi.h declares what the installed torch does.
check-native: $(READY)
	@c++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only \
	  -I"$$($(BIN)/python -c 'import torch; print(torch.__path__[0])')/include" $(NATIVE)/abi_check.cpp
	@$(MAKE) --no-print-directory native

format: $(READY)
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

# Train the built-in model again (about 10 minutes on 2 cores).
model: $(READY)
	@$(BIN)/python -m build_scripts.train_guide

# What quantised weights cost in quality: perplexity and logits, into docs/quantisation.md. Minutes.
quality: $(READY)
	@$(BIN)/python -m build_scripts.quality

# Quantised products against bfloat16's, at the shapes of a Llama of 1.1 billion weights; into bench/results/.
bench-quant: $(READY)
	@$(BIN)/python -m bench.quant

.PHONY: bench bench-full bench-gpu

# Beside llama.cpp and transformers on this machine, cell by cell, and how speed grows; into bench/results/. Linux, 2 cores,
# 8 GB of memory, 8 GB of disk in .bench/, half an hour; the first time 15 minutes more: llama.cpp is built (Debian: cmake, g++).
# Delay and bandwidth need root and iproute2. ARGS="--cells DE --bits 8 --add": these cells again.
bench: $(READY)
	@$(BIN)/python -m bench.table $(ARGS)

# The whole matrix, for hours; goes on where it was stopped. ARGS="--processes 2 --ways 5ms": a part of it.
bench-full: $(READY)
	@$(BIN)/python -m bench.table.matrix $(ARGS)

# A Llama of 8 billion random weights on a CUDA GPU, against what the GPU can do.
bench-gpu: $(READY)
	@$(BIN)/python -m bench.gpu $(ARGS)

report: $(READY)
	@$(BIN)/python -m build_scripts.house_report

# The one-file program: dist/vramancer-linux (-macos, .exe). Some minutes. ARGS="--beside": with its runtime beside it.
binary: $(READY)
	@$(BIN)/python -m build_scripts.binary $(ARGS)

# The one-file program as a person uses it: an empty home, no Python on the path.
smoke: $(READY)
	@$(BIN)/python -m build_scripts.smoke $(ARGS)

# The one-file program against the same verbs from .venv; results in bench/results/.
bench-binary: $(READY)
	@$(BIN)/python -m bench.binary

# What a transfer of weights costs a sequence that runs meanwhile, and the peak memory of loading.
bench-bulk: $(READY)
	@$(BIN)/python -m bench.bulk

bench-load: $(READY)
	@$(BIN)/python -m bench.load_memory

# Decode speed by how long the context is and how its blocks lie, as ratios.
bench-context: $(READY)
	@$(BIN)/python -m bench.context

# Tokens per trip and speed with tokens guessed ahead, against the same answers without; into bench/results/. Minutes.
bench-drafting: $(READY)
	@$(BIN)/python -m bench.drafting --processes

# CPU threads that sleep while they wait, against threads that spin.
bench-threads: $(READY)
	@$(BIN)/python -m bench.threads

# How long an answer pauses when a node dies, falls silent or is drained; into bench/results/. Minutes.
bench-recovery: $(READY)
	@$(BIN)/python -m bench.recovery

# The wheel and the source archive, in dist/.
wheel: $(READY)
	@$(BIN)/python -m build_scripts.wheel

# The tests against the installed wheel, outside this checkout. ALL=1: every test that does not read the checkout.
test-wheel: $(READY)
	@$(BIN)/python -m build_scripts.wheel --test $(if $(ALL),--all)

clean:
	rm -rf $(VENV) build dist .demo
