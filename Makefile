# Every target sets up what it needs in .venv, once.
SEED ?=
OUT  ?= out
SPEC ?= data/kuairand_mini.yaml
DATA ?= data/kuairand_pure_mini

UV    := uv==0.13.9
PY    := .venv/bin/python
STAMP := .venv/.installed
LOCK  := requirements/stack-a.lock
BUILD := requirements/build-constraints.txt

# Keras 3 everywhere: tensorflow_transform asks for Keras 2 where nothing is said.
export TF_USE_LEGACY_KERAS := 0
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench-lightgbm lock clean distclean fresh

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile
	@echo "Variables: SEED, OUT ($(OUT)), SPEC ($(SPEC)), DATA ($(DATA)), PYTHON (a Python 3.10)"

setup: $(STAMP)  ## Make .venv from the locked requirements (once)

demo: $(STAMP)  ## Run the pipeline on the sample data: from an impression log to a pushed model
	$(PY) -m tfx_pipeline.local_runner --spec "$(SPEC)" --data "$(DATA)" --output "$(OUT)" $(if $(SEED),--seed "$(SEED)")

test: $(STAMP)  ## Run the tests
	$(PY) -m pytest -n 2 --dist loadfile tests

lint: $(STAMP)  ## Check style, format, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo

bench-lightgbm: $(STAMP)  ## Compare LightGBM with the model of the newest run in OUT (SPEC as in that run)
	PYTHONWARNINGS=ignore TF_CPP_MIN_LOG_LEVEL=3 $(PY) -m benchmarks.lightgbm_baseline --spec "$(SPEC)" --output "$(OUT)"

lock: $(STAMP)  ## Resolve requirements/*.in into *.lock again (UPGRADE=--upgrade for newer versions)
	$(call resolve,a,3.10,2_28)
	$(call resolve,b,3.11,2_39,: resolved for Python 3.11 and glibc >= 2.39; not installed or run here)

# $(call resolve,stack,Python,glibc,remark)
resolve = .venv/bin/uv pip compile --quiet $(UPGRADE) --generate-hashes --annotation-style line --no-emit-index-url \
	--custom-compile-command "make lock$(4)" --python-version $(2) --python-platform x86_64-manylinux_$(3) \
	--build-constraints $(BUILD) requirements/stack-$(1).in --output-file requirements/stack-$(1).lock

clean:  ## Remove what runs leave behind: out, caches, builds
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## Remove .venv too
	rm -rf .venv

# The stamp is written last and holds the folder it was made in. No stamp, another folder, an interpreter that is gone:
# the environment is half made, moved or broken, and is made anew.
ifneq ($(shell $(PY) -c 'print(open("$(STAMP)").read().strip())' 2>/dev/null),$(CURDIR))
ANEW := fresh
fresh:
	python=$$(scripts/find_python.sh) && rm -rf .venv && "$$python" -m venv .venv
endif

$(STAMP): $(LOCK) $(BUILD) pyproject.toml setup.py $(ANEW)
	rm -f $@
	$(PY) -m pip install --quiet --disable-pip-version-check $(UV)
	.venv/bin/uv pip install --python $(PY) --compile-bytecode --require-hashes --build-constraints $(BUILD) -r $(LOCK)
	.venv/bin/uv pip install --python $(PY) --no-deps --no-build-isolation -e .
	@printf '%s\n' '$(CURDIR)' > $@
