# Start with `make demo` or `make test`. Each makes .venv and installs into it first, if needed.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := all,dev,docs

# Another Python: make demo PYTHON=python3.12. Some tests: make test ARGS="tests/core/test_spans.py -x".
PYTHON ?=
ARGS   ?=
# At most 4 workers: more do not make the tests faster, and each holds its own copy of PyTorch.
WORKERS ?= -n logical --maxprocesses 4

# uv does not read pip's settings, so PIP_FIND_LINKS (a local folder of wheels, such as a CPU build of torch) is passed
# to uv. pip separates the list by spaces, uv by commas.
empty :=
space := $(empty) $(empty)
comma := ,
UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
export UV_FIND_LINKS
# Without bytecode files, every start compiles all Python code of PyTorch again.
unexport PYTHONDONTWRITEBYTECODE

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
INSTALL := -c constraints.txt -e ".[$(EXTRAS)]"

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs weights install clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)  ## make a video, ground three queries in it, show the result
	@$(BIN)/sidelight demo $(ARGS)

test: $(STAMP)  ## run all tests (ARGS="-x tests/core/test_spans.py" for some)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(ARGS)

lint: $(STAMP)  ## check rules and format (ruff)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(STAMP)  ## fix rules and format where possible (ruff)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(STAMP)  ## check types (mypy)
	@$(BIN)/mypy

docs: $(STAMP)  ## build the documentation in build/docs (sphinx)
	@$(BIN)/sphinx-build -W --keep-going -n -q -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

weights: $(STAMP)  ## make the shipped weights again (about three hours)
	@scripts/make-weights.sh

install: $(STAMP)  ## make .venv and install everything into it

clean:  ## remove .venv, caches and builds
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests studies benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# An interrupted or failed installation leaves no stamp, so the next call installs again.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@if $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null; then exit 0; fi; \
	for python in $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.10); do \
	    if $$python -c '$(NEW_ENOUGH)' 2>/dev/null; then \
	        echo "making $(VENV) with $$python"; \
	        $$python -m venv --clear $(VENV); exit; \
	    fi; \
	done; \
	echo "sidelight needs Python 3.10 or newer; tried: $(if $(PYTHON),$(PYTHON),python3 and python3.10 to python3.13)." >&2; \
	echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	exit 1
	@echo "installing sidelight with [$(EXTRAS)] into $(VENV) (minutes the first time: torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv \
	    && $(BIN)/uv pip install --quiet --python $(BIN)/python $(INSTALL) \
	    || { echo "uv could not install; trying pip (slower)" >&2; \
	         $(BIN)/python -m pip install --disable-pip-version-check $(INSTALL); }
	@touch $@
