# Every target does its own set-up: it makes .venv once, and again when pyproject.toml or constraints.txt change.
#   make install PYTHON=python3.12        another interpreter (3.11 or newer)
#   make install TORCH="torch==2.11.0"    another torch, where the tested one cannot be had
PYTHON ?= python3
TORCH ?= $(shell sed -n '/^torch==/p' constraints.txt)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Figures of the bundled checkpoints; what is measured again takes some 50 minutes on two cores, going by earlier runs.
POOL := retention/results.json retention/longterm.json retention/longterm_int8.json retention/retrieval.json
PROSE := perplexity/tiny_prose.json perplexity/tiny_longterm_prose.json
# Two processes, of which one that is done takes over tests of the other.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint bench grass quality retention editing integrity report results clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# torch first and pinned: an open range may resolve to a build with gigabytes of CUDA libraries.
	$(BIN)/python -m pip install --quiet $(TORCH)
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e ".[train,dev]"
	@touch $@

install: $(STAMP)  ## make .venv with the tested versions

demo: $(STAMP)  ## fetch SmolLM2 once, tell it a handbook among unrelated paragraphs, and ask with and without memory
	$(BIN)/remanence setup smollm2
	$(BIN)/remanence demo

test: $(STAMP)  ## run the tests but for the slow ones, some minutes on two cores
	$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## run all tests
	$(PYTEST)

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## measure reading, writing and long-term memory, and renew the tables in the README
	$(BIN)/python benchmarks/run.py read_write --json benchmarks/read_write/results.json
	$(BIN)/python benchmarks/run.py longterm --json benchmarks/longterm/results.json
	$(BIN)/python benchmarks/report.py

grass: $(STAMP)  ## measure training steps against AdamW and GaLore, which it installs, and renew the table in the README
	$(BIN)/python -m pip install --quiet --no-deps galore-torch==1.0 bitsandbytes==0.50.2
	$(BIN)/python benchmarks/run.py grass_step --json benchmarks/grass/step.json
	$(BIN)/python benchmarks/report.py

quality: $(STAMP)  ## compare losses at equal tokens, an hour on two cores: make quality TEXT="paths of real text"
	@test -n "$(TEXT)" || { echo 'name WikiExtractor or .jsonl files, or folders of them: make quality TEXT="..."'; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps galore-torch==1.0 apollo-torch==1.0.3 bitsandbytes==0.50.2
	$(BIN)/python benchmarks/run.py grass_quality --text $(TEXT) --output runs/quality --json benchmarks/grass/quality.json
	$(BIN)/python benchmarks/report.py

retention: $(STAMP)  ## measure what the bundled checkpoints remember, and renew the results
	$(BIN)/python benchmarks/report.py --again $(POOL) retention/longterm_far.json

editing: $(STAMP)  ## change facts by memory, in context and by fine-tuning, and renew the results
	$(BIN)/python benchmarks/report.py --again editing/results.json

integrity: $(STAMP)  ## write 100,000 times into one memory and see that it still works; renew the results
	$(BIN)/python benchmarks/report.py --again integrity/results.json

report: $(STAMP)  ## measure again what fits in an hour on two cores, and renew the results; resumes where it was cut
	$(BIN)/python benchmarks/report.py --again $(POOL) editing/results.json $(PROSE)

results: $(STAMP)  ## write docs/results.md and the tables in the README from the figures in benchmarks
	$(BIN)/python benchmarks/report.py

clean:  ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
