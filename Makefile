# Every target sets up what it needs, once: test-newest in .venv-newest, the others in .venv.
SEED ?=
OUT  ?= out
SPEC ?= data/kuairand_mini.yaml
DATA ?= data/kuairand_pure_mini

UV     := uv==0.13.9
PY     := .venv/bin/python
STAMP  := .venv/.installed
AIRFLOW := .venv/.installed-airflow
BENCH  := PYTHONWARNINGS=ignore $(PY) -m benchmarks
NEWEST := .venv-newest
KUBEFLOW := $(PY) -m tfx_pipeline.kubeflow_runner --spec "$(SPEC)" --data gs://bucket/data --output gs://bucket/onerank --image onerank:test
BUILD  := requirements/build-constraints.txt
# A worker has a file's tests, in the order of their collection: not those of few tests last, which may take minutes.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Keras 3 everywhere: tensorflow_transform asks for Keras 2 where nothing is said.
export TF_USE_LEGACY_KERAS := 0
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test setup-airflow setup-newest airflow-test kubeflow-test test-newest test-asan fuzz-ops lint docs bench-attention bench-train bench-serving bench-serving-load bench-lightgbm bench-synthetic bench-scorers bench-kuairand bench-seesaw kill-matrix notebooks lock clean distclean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile
	@echo "Variables: SEED, OUT ($(OUT)), SPEC ($(SPEC)), DATA ($(DATA)), PYTHON (a Python 3.10; 3.11 for test-newest)"

setup: $(STAMP)  ## Make .venv from the locked requirements (once)

demo: $(STAMP)  ## Run the pipeline on the sample data: from an impression log to a pushed model
	$(PY) -m tfx_pipeline.local_runner --spec "$(SPEC)" --data "$(DATA)" --output "$(OUT)" $(if $(SEED),--seed "$(SEED)")

serve: $(STAMP)  ## Serve the model that `make demo` pushed, and say how to ask it (PORT, REST_PORT)
	$(PY) -m tfx_pipeline.serve --spec "$(SPEC)" --output "$(OUT)" $(if $(PORT),--port "$(PORT)") $(if $(REST_PORT),--rest_api_port "$(REST_PORT)")

test: $(STAMP)  ## Run the tests
	$(PY) $(PYTEST) tests

setup-airflow: $(AIRFLOW)  ## Add Airflow to .venv (once)

setup-newest: $(NEWEST)/.installed  ## Make .venv-newest: TensorFlow 2.21, Keras 3.15 and JAX, without TFX (once)

airflow-test: $(AIRFLOW)  ## Run the DAG for one day with Airflow, on SQLite, and check the pushed model
	$(PY) -m pytest -q tests/tfx_pipeline/test_airflow.py
	rm -rf "$(OUT)/airflow"
	$(PY) scripts/airflow_test.py --home "$(OUT)/airflow"

kubeflow-test: $(STAMP)  ## Compile the pipeline for Vertex AI and Kubeflow, and check what was compiled
	$(PY) -m pytest -q tests/tfx_pipeline/test_kubeflow.py
	$(KUBEFLOW) --target vertex --job "$(OUT)/kubeflow/$(basename $(notdir $(SPEC))).json"
	$(KUBEFLOW) --target kubeflow --job "$(OUT)/kubeflow/$(basename $(notdir $(SPEC))).yaml"

# Left out there: what takes long and hangs on no version of a library, as the same code in `make test` shows.
# What a request may know, and what is counted of a log: plain Python; test_signatures.py serves counting features.
ONCE := transform/test_no_leak.py transform/test_aggregates.py serving/test_predict_aggregates.py
# When a training stops, and how it goes on after a kill: decisions, and processes that end.
ONCE += trainer/test_resume.py trainer/test_course.py
test-newest: $(NEWEST)/.installed  ## Run there the tests of what needs no TFX: transform, trainer, serving
	$(NEWEST)/bin/python $(PYTEST) $(ONCE:%=--ignore=tests/%) tests/trainer tests/serving tests/transform

fuzz-ops: $(STAMP)  ## Run 1,000 random cases of each C++ operation against the reference
	PYTHONPATH=. $(PY) tests/trainer/fuzz_ops.py

test-asan: $(STAMP)  ## Run random cases of the C++ operations under the address sanitizer, every build of it
	rm -rf "$(OUT)/asan"
	ONERANK_CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer -O1" \
		$(PY) setup.py --quiet build --build-base "$(OUT)/asan" --build-lib "$(OUT)/asan/lib"
	for kernels in plain avx2 avx512; do \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 ONERANK_INSTRUCTIONS=$$kernels \
		PYTHONPATH="$(OUT)/asan/lib" $(PY) tests/trainer/fuzz_ops.py --cases 200 || exit 1; \
	done
notebooks: $(STAMP)  ## Execute the notebooks from an empty output folder and write their outputs back (minutes)
	rm -rf "$(OUT)/notebooks"
	SPEC="$(SPEC)" DATA="$(DATA)" OUT="$(OUT)/notebooks" $(PY) scripts/notebooks.py notebooks/*.ipynb

lint: $(STAMP)  ## Check style, format, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

docs: $(STAMP)  ## Write docs/spec.md from the schema and the models
	$(PY) -W ignore -m docs.make_spec_reference

bench-attention: $(STAMP)  ## The attention's kernels and their rivals: speed, memory, exactness (TORCH_PYTHON: an interpreter with PyTorch)
	$(BENCH).attention --output benchmarks/results/attention.json $(if $(TORCH_PYTHON),--torch-python "$(TORCH_PYTHON)")

bench-train: $(STAMP)  ## OneRank's training step: attention's kernels, XLA, bfloat16, Keras's own layers
	$(BENCH).train --spec "$(SPEC)" --data "$(DATA)" --cache "$(OUT)/bench/prepared" --output benchmarks/results/train.json

bench-serving: $(STAMP)  ## Requests to an exported OneRank: kept contexts, repeated histories, the embedded server, skew
	$(BENCH).serving --spec "$(SPEC)" --data "$(DATA)" --cache "$(OUT)/bench/prepared" --output benchmarks/results/serving.json

bench-serving-load: $(STAMP)  ## Ten minutes of load on the embedded server while versions come; then it is killed, and gets broken versions
	$(BENCH).serving_load --spec "$(SPEC)" --data "$(DATA)" --cache "$(OUT)/bench/prepared" --output benchmarks/results/serving_load.json

bench-lightgbm: $(STAMP)  ## Compare LightGBM with the model of the newest run in OUT (SPEC as in that run)
	PYTHONWARNINGS=ignore TF_CPP_MIN_LOG_LEVEL=3 $(PY) -m benchmarks.lightgbm_baseline --spec "$(SPEC)" --output "$(OUT)"

bench-synthetic: $(STAMP)  ## Models, and OneRank without its parts, on data with a known truth (hours)
	$(BENCH).synthetic --variants benchmarks/variants/synthetic.yaml --output "$(OUT)/bench"
	$(BENCH).synthetic --variants benchmarks/variants/ablation.yaml --output "$(OUT)/bench" --scenarios conflict set --strengths 1

bench-scorers: $(STAMP)  ## The three scorers: training steps until they know more than the base rates
	$(BENCH).plateau --variants benchmarks/variants/scorers.yaml --output "$(OUT)/bench"

bench-kuairand: $(STAMP)  ## OneRank, DIN and LightGBM on KuaiRand-Pure (DATA: its folder), by day and by week
	$(BENCH).quality --spec data/kuairand_dev.yaml --data "$(DATA)" --variants benchmarks/variants/kuairand.yaml --output "$(OUT)/bench"
	test -d "$(OUT)/bench/weeks" || $(PY) -m benchmarks.kuairand_weeks --spec data/kuairand_dev.yaml --data "$(DATA)" --output "$(OUT)/bench/weeks"
	$(BENCH).quality --spec "$(OUT)/bench/weeks/spec.yaml" --data "$(OUT)/bench/weeks" --variants benchmarks/variants/kuairand_weeks.yaml --output "$(OUT)/bench"

bench-seesaw: $(STAMP)  ## Each task of SPEC learned with the others and alone
	$(BENCH).seesaw --spec "$(SPEC)" --data "$(DATA)" --output "$(OUT)/bench"

kill-matrix: $(STAMP)  ## Kill a small pipeline in every component, start it again, compare where it ends
	$(BENCH).kill_matrix --output "$(OUT)/kill-matrix"

lock: $(STAMP)  ## Resolve requirements/*.in into *.lock again (UPGRADE=--upgrade for newer versions)
	$(call resolve,stack-a,3.10,2_28)
	$(call resolve,airflow,3.10,2_28)
	$(call resolve,stack-b,3.11,2_39,: resolved for Python 3.11 and glibc >= 2.39; not installed or run here)
	$(call resolve,newest,3.11,2_28,: resolved for Python 3.11 and glibc >= 2.28; make test-newest runs it)

# $(call resolve,name,Python,glibc,remark)
resolve = .venv/bin/uv pip compile --quiet $(UPGRADE) --generate-hashes --annotation-style line --no-emit-index-url \
	--custom-compile-command "make lock$(4)" --python-version $(2) --python-platform x86_64-manylinux_$(3) \
	--build-constraints $(BUILD) requirements/$(1).in --output-file requirements/$(1).lock

clean:  ## Remove what runs leave behind: out, caches, builds
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path './.venv*' -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## Remove .venv and .venv-newest too
	rm -rf .venv $(NEWEST)

# The stamp is written last and holds the folder it was made in. No stamp, another folder, an interpreter that is gone:
# the environment is half made, moved or broken, and is made anew.
# $(call environment,folder,lock,Python)
define environment
ifneq ($$(shell $(1)/bin/python -c 'print(open("$(1)/.installed").read().strip())' 2>/dev/null),$$(CURDIR))
.PHONY: anew-$(1)
$(1)/.installed: anew-$(1)
anew-$(1):
	python=$$$$(scripts/find_python.sh $(3)) && rm -rf $(1) && "$$$$python" -m venv $(1)
endif

$(1)/.installed: $(2) $$(BUILD) pyproject.toml setup.py $$(wildcard trainer/ops/cc/*)
	rm -f $$@
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check $$(UV)
	$(1)/bin/uv pip install --python $(1)/bin/python --compile-bytecode --require-hashes --build-constraints $$(BUILD) -r $(2)
	$(1)/bin/uv pip install --python $(1)/bin/python --no-deps --no-build-isolation -e .
	@printf '%s\n' '$$(CURDIR)' > $$@
endef
$(eval $(call environment,.venv,requirements/stack-a.lock,3.10))

$(AIRFLOW): $(STAMP) requirements/airflow.lock
	.venv/bin/uv pip install --python $(PY) --compile-bytecode --require-hashes --build-constraints $(BUILD) -r requirements/airflow.lock
	@touch $@

$(eval $(call environment,$(NEWEST),requirements/newest.lock,3.11))
