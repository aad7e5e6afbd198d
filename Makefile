# Everything a newcomer needs: `make demo` talks to a real Triton server on this machine's CPU, `make test` checks all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CHECKPOINT ?= checkpoints/seed
ENGINES ?= engines/cpu

.PHONY: demo serve test lint bench conformance clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip

$(VENV)/.serve: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -qq --editable '.[serve,build]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -qq --editable '.[serve,build,train,test]'
	@touch $@ $(VENV)/.serve

$(CHECKPOINT)/language_model/config.json: | $(VENV)/.serve
	$(BIN)/python -m build_engines.seed_checkpoint --out $(CHECKPOINT)

# The builder skips every stage whose inputs have not changed.
.PHONY: engines
engines: $(VENV)/.serve $(CHECKPOINT)/language_model/config.json
	$(BIN)/python -m build_engines --checkpoint $(CHECKPOINT) --target cpu --out $(ENGINES)

demo: engines  ## a spoken question and a text to a real server, speech back as WAV files in out/
	$(BIN)/python examples/demo.py --engines $(ENGINES)

serve: engines  ## the server in the foreground; Ctrl-C drains
	$(BIN)/python -m server --engines $(ENGINES) --checkpoint $(CHECKPOINT)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## everything that needs no GPU
	$(BIN)/python -m pytest

bench: engines  ## time to first audio, real-time factor and where each millisecond goes
	$(BIN)/python -m benchmarks.serving --engines $(ENGINES)

conformance: $(VENV)/.serve  ## golden data through every engine available here
	$(BIN)/python -m vita_audio.conformance $(or $(GOLDEN),../shared/golden)

clean:
	rm -rf engines checkpoints/seed out
