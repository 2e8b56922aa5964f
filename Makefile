# Every target sets up what it needs, once: test-other in .venv-other, the rest in .venv (scripts/setup.sh).
SEED ?=
OUT  ?= out
SPEC ?= data/kuairand_mini.yaml
DATA ?= data/kuairand_pure_mini

PY     := .venv/bin/python
BENCH  := PYTHONWARNINGS=ignore $(PY) -m benchmarks
KUBEFLOW := .venv/bin/onerank kubeflow --spec "$(SPEC)" --data gs://bucket/data --output gs://bucket/onerank --image onerank:test
# A worker has a file's tests, in the order of their collection: not those of few tests last, which may take minutes.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Keras 3 everywhere: tensorflow_transform asks for Keras 2 where nothing is said.
export TF_USE_LEGACY_KERAS := 0
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test setup-airflow setup-other airflow-test kubeflow-test test-fast test-other debian13 test-asan fuzz-ops lint docs bench-attention bench-train bench-serving bench-serving-load bench-lightgbm bench-synthetic bench-scorers bench-kuairand bench-seesaw kill-matrix notebooks lock clean distclean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' Makefile
	@echo "Variables: SEED, OUT ($(OUT)), SPEC ($(SPEC)), DATA ($(DATA)), STACK (a or b), PYTHON (an interpreter)"

setup:  ## Make .venv from the locked requirements, on the newest stack that this machine can run (once)
	@STACK="$(STACK)" PYTHON="$(PYTHON)" scripts/setup.sh main

demo: setup  ## Run the pipeline on the sample data: from an impression log to a pushed model
	.venv/bin/onerank run --spec "$(SPEC)" --data "$(DATA)" --output "$(OUT)" $(if $(SEED),--seed "$(SEED)")

serve: setup  ## Serve the model that `make demo` pushed, and say how to ask it (PORT, REST_PORT)
	.venv/bin/onerank serve --spec "$(SPEC)" --output "$(OUT)" $(if $(PORT),--port "$(PORT)") $(if $(REST_PORT),--rest_api_port "$(REST_PORT)")

test: setup  ## Run all tests, the fast ones first
	$(PY) $(PYTEST) tests

test-fast: setup  ## Run the unit tests alone, in less than two minutes
	$(PY) $(PYTEST) -m "not pipeline and not server and not slow" tests

setup-airflow: setup  ## Add Airflow to .venv (once; stack A)
	@scripts/setup.sh airflow

setup-other: setup  ## Make .venv-other with the other stack: B's libraries without TFX beside A, A beside B (once)
	@scripts/setup.sh other

airflow-test: setup-airflow  ## Run the DAG for one day with Airflow, on SQLite, and check the pushed model
	$(PY) -m pytest -q tests/tfx_pipeline/runners/test_airflow.py
	rm -rf "$(OUT)/airflow"
	$(PY) scripts/airflow_test.py --home "$(OUT)/airflow"

kubeflow-test: setup  ## Compile the pipeline for Vertex AI and Kubeflow, and check what was compiled
	$(PY) -m pytest -q tests/tfx_pipeline/runners/test_kubeflow.py
	$(KUBEFLOW) --target vertex --job "$(OUT)/kubeflow/$(basename $(notdir $(SPEC))).json"
	$(KUBEFLOW) --target kubeflow --job "$(OUT)/kubeflow/$(basename $(notdir $(SPEC))).yaml"

test-other: setup-other  ## Run there the tests of what needs no TFX and depends on the versions of libraries
	if [ -x .venv-other/bin/python ]; then XLA_FLAGS= .venv-other/bin/python $(PYTEST) -m "not once" tests/trainer tests/serving tests/transform; fi

debian13:  ## As root: run `make demo` and `make test` in a Debian 13 made by debootstrap below OUT (DEBIAN_MIRROR, minutes)
	scripts/debian13.sh "$(OUT)/debian13"

fuzz-ops: setup  ## Run 1,000 random cases of each C++ operation against the reference
	$(PY) -m tests.testing.fuzz_ops

test-asan: setup  ## Run random cases of the C++ operations under the address sanitizer, every build of it
	rm -rf "$(OUT)/asan"
	ONERANK_CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer -O1" \
		$(PY) setup.py --quiet build --build-base "$(OUT)/asan" --build-lib "$(OUT)/asan/lib"
	for kernels in plain avx2 avx512; do \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 ONERANK_INSTRUCTIONS=$$kernels \
		PYTHONPATH="$(OUT)/asan/lib:." $(PY) tests/testing/fuzz_ops.py --cases 200 || exit 1; \
	done

notebooks: setup  ## Execute the notebooks from an empty output folder and write their outputs back (minutes)
	rm -rf "$(OUT)/notebooks"
	SPEC="$(SPEC)" DATA="$(DATA)" OUT="$(OUT)/notebooks" $(PY) scripts/notebooks.py notebooks/*.ipynb

lint: setup  ## Check style, format, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

docs: setup  ## Write docs/spec.md from the schema and the models
	$(PY) -W ignore -m docs.make_spec_reference

bench-attention: setup  ## The attention's kernels and their rivals: speed, memory, exactness (TORCH_PYTHON: an interpreter with PyTorch)
	$(BENCH).attention.compare_kernels --output benchmarks/attention/compare_kernels.json $(if $(TORCH_PYTHON),--torch-python "$(TORCH_PYTHON)")

bench-train: setup  ## OneRank's training step: attention's kernels, XLA, bfloat16, Keras's own layers
	$(BENCH).training.train_step --spec "$(SPEC)" --data "$(DATA)" --cache "$(OUT)/bench/prepared" --output benchmarks/training/train_step.json

bench-serving: setup  ## Requests to an exported OneRank: kept user states, repeated histories, the embedded server, skew
	$(BENCH).serving.request_cost --spec "$(SPEC)" --data "$(DATA)" --cache "$(OUT)/bench/prepared" --output benchmarks/serving/request_cost.json

bench-serving-load: setup  ## Ten minutes of load on the embedded server while versions come; then it is killed, and gets broken versions
	$(BENCH).serving.server_load --spec "$(SPEC)" --data "$(DATA)" --cache "$(OUT)/bench/prepared" --output benchmarks/serving/server_load.json

bench-lightgbm: setup  ## Compare LightGBM with the model of the newest run in OUT (SPEC as in that run)
	PYTHONWARNINGS=ignore TF_CPP_MIN_LOG_LEVEL=3 $(PY) -m benchmarks.quality.lightgbm_baseline --spec "$(SPEC)" --output "$(OUT)"

bench-synthetic: setup  ## Models, and OneRank without its parts, on data with a known truth (hours)
	$(BENCH).quality.synthetic --variants benchmarks/quality/variants/synthetic.yaml --output "$(OUT)/bench"
	$(BENCH).quality.synthetic --variants benchmarks/quality/variants/ablation.yaml --output "$(OUT)/bench" --scenarios conflict set --strengths 1

bench-scorers: setup  ## The three scorers: training steps until they know more than the base rates
	$(BENCH).quality.plateau --variants benchmarks/quality/variants/scorers.yaml --output "$(OUT)/bench"

bench-kuairand: setup  ## OneRank, DIN and LightGBM on KuaiRand-Pure (DATA: its folder), by day and by week
	$(BENCH).quality.compare_models --spec data/kuairand_dev.yaml --data "$(DATA)" --variants benchmarks/quality/variants/kuairand.yaml --output "$(OUT)/bench"
	test -d "$(OUT)/bench/weeks" || $(PY) -m benchmarks.quality.kuairand_weeks --spec data/kuairand_dev.yaml --data "$(DATA)" --output "$(OUT)/bench/weeks"
	$(BENCH).quality.compare_models --spec "$(OUT)/bench/weeks/spec.yaml" --data "$(OUT)/bench/weeks" --variants benchmarks/quality/variants/kuairand_weeks.yaml --output "$(OUT)/bench"

bench-seesaw: setup  ## Each task of SPEC learned with the others and alone
	$(BENCH).quality.seesaw --spec "$(SPEC)" --data "$(DATA)" --output "$(OUT)/bench"

kill-matrix: setup  ## Kill a small pipeline in every component, start it again, compare where it ends
	PYTHONWARNINGS=ignore $(PY) -m tests.testing.kill_matrix --output "$(OUT)/kill-matrix"

lock: setup  ## Resolve requirements/*.in into *.lock again (UPGRADE=--upgrade for newer versions)
	$(RESOLVE) --python-version 3.10 --python-platform x86_64-manylinux_2_28 requirements/stack-a.in --output-file requirements/stack-a.lock
	$(RESOLVE) --python-version 3.10 --python-platform x86_64-manylinux_2_28 requirements/airflow.in --output-file requirements/airflow.lock
	$(RESOLVE) --python-version 3.11 --universal requirements/stack-b.in --output-file requirements/stack-b.lock
	$(RESOLVE) --python-version 3.11 --universal requirements/stack-b-light.in --output-file requirements/stack-b-light.lock
	$(PY) scripts/make_constraints.py requirements/stack-a.lock requirements/stack-b.lock --output requirements/constraints.txt

RESOLVE = .venv/bin/uv pip compile --quiet $(UPGRADE) --generate-hashes --annotation-style line --no-emit-index-url \
	--custom-compile-command "make lock" --build-constraints requirements/build-constraints.txt

clean:  ## Remove what runs leave behind: out, caches, builds
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path './.venv*' -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## Remove .venv and .venv-other too
	rm -rf .venv .venv-other
