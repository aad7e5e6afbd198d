# Everything a newcomer needs: `make demo` talks to a real Triton server on this machine's CPU, `make test` checks all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What an installation depends on.
DECLARED := pyproject.toml client/requirements.txt
CHECKPOINT ?= checkpoints/small
ENGINES ?= engines/cpu
WORKERS ?= 2
# Engines that come with a checkpoint, as their difference from it: restored without PyTorch.
PACKAGED := $(wildcard $(CHECKPOINT)-engines-cpu)

.PHONY: help demo serve web test clients lint mutation bench results soak conformance loadtest scale-out plan clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip

$(VENV)/.serve: $(BIN)/python $(DECLARED)
	$(BIN)/python -m pip install -qq --editable '.[serve]'
	@touch $@

$(VENV)/.build: $(BIN)/python $(DECLARED)
	$(BIN)/python -m pip install -qq --editable '.[serve,build]'
	@touch $@ $(VENV)/.serve

$(VENV)/.test: $(BIN)/python $(DECLARED)
	$(BIN)/python -m pip install -qq --editable '.[serve,build,train,evaluation,loadtest,gateway,mutation,test,gpu-check]'
	@touch $@ $(VENV)/.serve $(VENV)/.build $(VENV)/.loadtest $(VENV)/.gateway

$(VENV)/.gateway: $(BIN)/python $(DECLARED)
	$(BIN)/python -m pip install -qq --editable '.[serve,gateway]'
	@touch $@ $(VENV)/.serve

$(VENV)/.loadtest: $(BIN)/python $(DECLARED)
	$(BIN)/python -m pip install -qq --editable '.[loadtest]'
	@touch $@

# A checkpoint of the small size with random weights: it speaks noise, at the speed of the trained one.
checkpoints/random/language_model/config.json: | $(VENV)/.build
	$(BIN)/python -m vita_audio.checkpoint.random_weights --out checkpoints/random

.PHONY: engines
ifeq ($(PACKAGED),)
# The builder skips every stage whose inputs have not changed.
engines: $(VENV)/.build $(CHECKPOINT)/language_model/config.json
	$(BIN)/python -m build_engines --checkpoint $(CHECKPOINT) --target cpu --out $(ENGINES)
else
engines: $(VENV)/.serve
	$(BIN)/python -m build_engines.packaged unpack --checkpoint $(CHECKPOINT) --packaged $(PACKAGED) --out $(ENGINES)
endif

demo: engines  ## a spoken question and a text to a real server, speech back as WAV files in out/
	$(BIN)/python examples/demo.py --engines $(ENGINES)

serve: engines  ## the server in the foreground; Ctrl-C drains
	$(BIN)/python -m server --engines $(ENGINES) --checkpoint $(CHECKPOINT)

web: engines $(VENV)/.gateway  ## a server, and the gateway before it with a page to talk to; Ctrl-C ends both
	$(BIN)/python examples/web.py --engines $(ENGINES) --port $(or $(PORT),8080)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Some thousand tests share two cores, and some of them watch a clock: the few that fail are run once more, alone.
# What fails twice has failed; a run that was stopped, or did not begin, is not tried again.
test: lint  ## everything that needs no GPU; WORKERS processes share the test files, 0: all in one
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder || { test $$? -eq 1 && \
	  echo 'make test: the tests that failed, once more, alone' && $(BIN)/python -m pytest -v --last-failed; }

# A client's environment is made once, in .clients/; Open WebUI's has 3 GB and takes five minutes.
clients: engines $(VENV)/.test  ## openai, pipecat, livekit, wyoming, Open WebUI unchanged against a gateway; CLIENTS: some of them
	$(BIN)/python tests/clients/run.py --engines $(ENGINES) $(CLIENTS)

mutation: $(VENV)/.test  ## small bugs put into a copy of the code, those that no test notices are listed; goes on where it stopped
	$(BIN)/python -m benchmarks.mutation --minutes $(or $(MINUTES),60)

bench: engines  ## time to first audio, real-time factor and where each millisecond goes
	$(BIN)/python -m benchmarks.serving --engines $(ENGINES)

results: engines $(VENV)/.test  ## every CPU table of docs/results.md on this revision; about 35 minutes, goes on where it stopped
	$(BIN)/python -m benchmarks.results --engines $(ENGINES)

# RATE is the last step's, in streams a second; what two cores carried at this promise: docs/results.md, "Load test in steps".
loadtest: $(VENV)/.loadtest  ## at most 3 minutes against a running `make serve`; report in out/loadtest/run
	timeout --signal=INT 180 $(BIN)/python -m loadtest --url $(or $(URL),localhost:8001) --rate $(or $(RATE),0.8) \
		--shape steps --warm-up 10 --run-time 110 --drain 15 --prebuffer-ms 60 --slo-ttfa-p95-ms 300 --out out/loadtest/run

soak: engines $(VENV)/.loadtest  ## a server under steady load for MINUTES: memory, threads, streams left behind
	$(BIN)/python -m benchmarks.soak --engines $(ENGINES) --rate $(or $(RATE),1.6) --minutes $(or $(MINUTES),20)

scale-out: engines  ## two servers behind a balancer, one of them killed (needs haproxy)
	$(BIN)/python -m benchmarks.scale_out --engines $(ENGINES)

plan: $(VENV)/.build  ## what a GPU build of CHECKPOINT would take: files, memory, streams that fit
	$(BIN)/python -m build_engines plan --checkpoint $(CHECKPOINT)

conformance: $(VENV)/.build  ## golden data through every engine available here
	$(BIN)/python -m build_engines.conformance $(or $(GOLDEN),tests/golden)

clean:
	rm -rf engines checkpoints/random out
