# Every target does its own set-up; `make help` lists them.
#
# PYTHON=python3.12 chooses the interpreter of the environment, VENV=dir its place.
VENV ?= .venv
PY := $(VENV)/bin/python
CCTRACE := $(VENV)/bin/cctrace
RUNS := runs
C_SOURCES = $(shell find probes tests benchmarks examples/simcuda -name build -prune -o -name '*.[ch]' -print \
	-o -name '*.cc' -print)
TEXTS = $(wildcard *.md *.toml) Makefile benchmarks cctrace docs examples probes queries \
	scripts tests
PYTEST_ARGS ?=
# What `make test` runs: all that needs no other machine, environment or program.
DEFAULT := not engines and not gpu and not vm and not grid and not pages
DEMO_QUERIES := step_breakdown async_copies_that_block

export VENV

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | \
		while IFS="$$(printf '\t')" read -r target text; do \
			printf '  %-14s %s\n' "$$target" "$$text"; done

.PHONY: setup
setup: ## Make .venv with cctrace, its tools and its C parts
	@scripts/setup.sh

.PHONY: setup-torch
setup-torch:
	@scripts/setup.sh --torch

.PHONY: demo
demo: setup ## Record a decode loop on a simulated GPU, query the run, print
	$(MAKE) --no-print-directory -s -C examples/simcuda PYTHON=$(abspath $(PY))
	@mkdir -p $(RUNS)
	$(CCTRACE) record -o $(RUNS)/demo --force -- \
		$(PY) examples/decode_loop.py --profile b300-cc >$(RUNS)/demo.json
	$(CCTRACE) report $(RUNS)/demo
	@for name in $(DEMO_QUERIES); do \
		printf '\n$(CCTRACE) query $(RUNS)/demo --name %s\n' $$name; \
		$(CCTRACE) query $(RUNS)/demo --name $$name || exit; done
	@printf '\n%s\n' "In CC mode a readback of some bytes (d2h) blocks until the step is done." \
		"What the loop counted itself is in $(RUNS)/demo.json."

.PHONY: test
test: setup ## Run the tests: side by side, then those that need quiet one by one
	@status=0; \
	$(PY) -m pytest -q -n auto --maxprocesses 8 -m "$(DEFAULT) and not quiet" \
		$(PYTEST_ARGS) || status=1; \
	$(PY) -m pytest -q -m "$(DEFAULT) and quiet" $(PYTEST_ARGS) || status=1; \
	exit $$status

.PHONY: test-again
test-again: setup
	$(PY) -m pytest -q -m "$(DEFAULT)" --last-failed --last-failed-no-failures=none

.PHONY: test-pages
test-pages: setup ## Open flamegraphs and reports in headless Chromium
	@scripts/pages_setup.sh
	$(PY) -m pytest -q -m pages $(PYTEST_ARGS)

.PHONY: test-grid
test-grid: setup ## Compare attribution with the simulated device in many configurations
	$(MAKE) --no-print-directory -s -C examples/simcuda PYTHON=$(abspath $(PY))
	$(PY) -m pytest -q -m grid $(PYTEST_ARGS)

.PHONY: test-engines
test-engines: vllm-env hf-env ## Run the tests that record real engines
	CCTRACE_VLLM_PYTHON=$(VENV)-vllm/bin/python CCTRACE_HF_PYTHON=$(VENV)-hf/bin/python \
		$(PY) -m pytest -q -m engines $(PYTEST_ARGS)

.PHONY: test-gpu
test-gpu: setup-torch ## Run the tests that need an NVIDIA GPU and its driver
	$(PY) -m pytest -q -m gpu $(PYTEST_ARGS)

.PHONY: test-vm
test-vm: setup ## Run the tests in a guest with SWIOTLB forced (root)
	scripts/vm_image.sh
	$(PY) -m pytest -q -m vm $(PYTEST_ARGS)

.PHONY: lint
lint: lint-python lint-types lint-c lint-sql lint-text ## Check style, types and spelling

.PHONY: lint-python lint-types lint-c lint-sql lint-text
lint-python: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lint-types: setup
	$(PY) -m mypy

lint-c: setup
	$(VENV)/bin/clang-format --dry-run -Werror $(C_SOURCES)

lint-sql: setup
	$(VENV)/bin/sqlfluff lint --nocolor queries

lint-text: setup
	$(VENV)/bin/codespell $(TEXTS)
	$(PY) scripts/gen_cli_docs.py --check
	$(PY) scripts/gen_query_docs.py --check
	$(PY) scripts/gen_report_schema.py --check
	bash -n scripts/*.sh .ci/run
	sh -n examples/*/*.sh

.PHONY: format
format: setup ## Rewrite Python and C in the project's style
	$(PY) -m ruff check --fix-only --exit-zero .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(C_SOURCES)
	$(PY) scripts/gen_cli_docs.py
	$(PY) scripts/gen_query_docs.py
	$(PY) scripts/gen_report_schema.py

.PHONY: bench
bench: setup ## Measure cctrace's own cost on this machine
	$(PY) benchmarks/run.py

.PHONY: screenshots
screenshots: demo example-vllm ## Take the pictures of docs/images anew
	@scripts/pages_setup.sh
	$(PY) scripts/screenshots.py $(RUNS)/demo demo
	$(PY) scripts/screenshots.py $(RUNS)/vllm vllm

.PHONY: vllm-env
vllm-env: setup
	@PYTHON=$(PY) examples/vllm_offline/setup.sh $(VENV)-vllm

.PHONY: example-vllm
example-vllm: vllm-env ## Record vLLM on the CPU and print its steps
	$(CCTRACE) record -o $(RUNS)/vllm --force --stacks all -- \
		$(VENV)-vllm/bin/python examples/vllm_offline/run.py
	$(CCTRACE) info $(RUNS)/vllm
	$(CCTRACE) query $(RUNS)/vllm --name itl

.PHONY: hf-env
hf-env: setup
	@PYTHON=$(PY) examples/hf_generate/setup.sh $(VENV)-hf

.PHONY: example-hf
example-hf: hf-env ## Record Hugging Face transformers and print its steps
	$(CCTRACE) record -o $(RUNS)/hf --force -- \
		$(VENV)-hf/bin/python examples/hf_generate/run.py
	$(CCTRACE) info $(RUNS)/hf
	$(CCTRACE) query $(RUNS)/hf --name itl

.PHONY: wheel
wheel: setup ## Build the wheel into dist/
	$(PY) -m pip wheel -q --no-deps --no-build-isolation -w dist .

.PHONY: clean
clean: ## Remove what the other targets made, environments included
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-hf build dist .cache $(RUNS) examples/simcuda/build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
