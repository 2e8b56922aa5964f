"""The pipeline as compiled for Vertex AI and for Kubeflow Pipelines: nothing is submitted here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from kfp import components

from tests.testing import small_problem
from tests.testing.repository import repository
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.pipeline import create_pipeline
from tfx_pipeline.runners.kubeflow import NOTES, main
from transform.spec.loading import load_spec

pytestmark = pytest.mark.slow

IMAGE = "images.example/onerank:7"
ENTRY = ["python", "-m", "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"]
NODES = {
    *("ImpressionExampleGen", "StatisticsGen", "SpecSchema", "ExampleValidator", "AnomalyGate", "Transform"),
    *("Trainer", "Evaluator", "LabelStatistics", "ServingValidator", "AtomicPusher"),
}
RESOLVERS = {"latest_blessed_model-model-blessing-resolver", "latest_blessed_model-model-resolver"}
MOVING = {"by": "day", "date_format": "YYYYMMDD", "train": [-6, -2], "eval": [-1, -1], "test": [0, 0]}


def arguments(spec: Path, job: Path, target: str, *extra: str) -> list[str]:
    where = ["--data", "gs://bucket/data", "--output", "gs://bucket/onerank", "--image", IMAGE]
    return ["--spec", str(spec), *where, "--target", target, "--job", str(job), *extra]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kubeflow")
    spec = small_problem.write_spec(folder / "small.yaml", name="small_problem", split=MOVING)
    extra = ("--as_of", "2022-05-05", "--seed", "17", "--beam_args", "runner=DataflowRunner", "region=europe-west4")
    assert main(arguments(spec, folder / "new" / "job.json", "vertex", *extra)) == 0
    assert main(arguments(spec, folder / "new" / "pipeline.yaml", "kubeflow", *extra)) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["new", "small.yaml"], "the job alone is written"
    job = json.loads((folder / "new" / "job.json").read_text())
    return {
        "job": job,
        "vertex": job["pipelineSpec"],
        "kubeflow": yaml.safe_load((folder / "new/pipeline.yaml").open()),
    }


def parameters(pipeline: dict, task: str) -> dict:
    found = pipeline["root"]["dag"]["tasks"][task]["inputs"]["parameters"]
    return {name: value["runtimeValue"]["constant"] for name, value in found.items()}


def containers(pipeline: dict) -> dict[str, dict]:
    executors = pipeline["deploymentSpec"]["executors"]
    return {name: executor["container"] for name, executor in executors.items() if "container" in executor}


@pytest.mark.parametrize("target", ["vertex", "kubeflow"])
def test_kfp_loads_the_pipeline(compiled, target):
    loaded = components.load_component_from_text(yaml.safe_dump(compiled[target]))
    assert loaded.name == "small-problem"
    assert set(loaded.pipeline_spec.components) == set(compiled[target]["root"]["dag"]["tasks"])


def test_vertex_takes_the_job(compiled, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(compiled["job"]))
    place = {"project": "nobody", "location": "europe-west4", "credentials": AnonymousCredentials()}
    job = aiplatform.PipelineJob(display_name="small", template_path=str(tmp_path / "job.json"), **place)
    assert job.runtime_config.gcs_output_directory == "gs://bucket/onerank/pipeline/small_problem"


@pytest.mark.parametrize("target", ["vertex", "kubeflow"])
def test_every_component_runs_in_the_image_with_the_beam_options(compiled, target):
    found = containers(compiled[target])
    assert set(found) == {f"{node}_executor" for node in NODES}
    for container in found.values():
        assert container["image"] == IMAGE
        assert container["command"] == ENTRY
        assert container["args"][-2:] == ["--runner=DataflowRunner", "--region=europe-west4"]


def test_the_baseline_is_what_the_target_can_find(compiled):
    vertex, kubeflow = (compiled[target]["root"]["dag"]["tasks"] for target in ("vertex", "kubeflow"))
    assert set(vertex) == NODES | RESOLVERS
    assert set(kubeflow) == NODES, "the backend of Kubeflow Pipelines runs no resolvers"
    source = vertex["Evaluator"]["inputs"]["artifacts"]["baseline_model"]["taskOutputArtifact"]
    assert source["producerTask"] in RESOLVERS
    assert "baseline_model" not in kubeflow["Evaluator"]["inputs"]["artifacts"]
    assert "baseline" in vertex["ServingValidator"]["inputs"]["artifacts"]
    assert "baseline" not in kubeflow["ServingValidator"]["inputs"]["artifacts"]
    assert "infra_blessing" in kubeflow["AtomicPusher"]["inputs"]["artifacts"]


def test_parameters_carry_the_spec_and_the_paths(compiled):
    pipeline = compiled["vertex"]
    trained = json.loads(json.loads(parameters(pipeline, "Trainer")["custom_config"])["spec"])
    assert trained["training"]["seed"] == 17
    assert trained["split"] == {
        "by": "day",
        "train": [20220429, 20220503],
        "eval": [20220504, 20220504],
        "test": [20220505, 20220505],
    }
    assert json.loads(parameters(pipeline, "LabelStatistics")["spec"])["split"] == trained["split"]
    assert parameters(pipeline, "ImpressionExampleGen")["input_base"] == "gs://bucket/data"
    assert '"log*.csv"' in parameters(pipeline, "ImpressionExampleGen")["input_config"]
    assert "gs://bucket/onerank/serving/small_problem" in parameters(pipeline, "AtomicPusher")["push_destination"]
    assert parameters(pipeline, "AnomalyGate")["allow_anomalies"] == 0
    assert "name: " in parameters(pipeline, "SpecSchema")["text"]


def test_the_image_holds_all_code_that_the_job_names(compiled, tmp_path):
    """A wheel is built of what the Dockerfile copies; test_packaging.py compiles the operations that go into it."""
    dockerfile = (repository() / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            path = repository() / source
            if path.is_dir():
                shutil.copytree(path, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(path, tmp_path / target)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    subprocess.run([*build, "--wheel-dir", "wheels", "."], cwd=tmp_path, env=environment, check=True)
    (wheel,) = (tmp_path / "wheels").glob("onerank-*.whl")
    packed = zipfile.ZipFile(wheel)
    named = {container["args"][1] for container in containers(compiled["vertex"]).values()}
    named |= {parameters(compiled["vertex"], "Transform")["preprocessing_fn"]}
    named |= {parameters(compiled["vertex"], "Trainer")["run_fn"]}
    named |= {parameters(compiled["vertex"], "Evaluator")["module_path"] + ".custom_extractors"}
    own = sorted(name for name in named if not name.startswith("tfx."))
    assert len(own) == 9
    for name in own:
        module, attribute = name.rsplit(".", 1)
        source = packed.read(module.replace(".", "/") + ".py").decode()
        assert re.search(rf"^(class|def) {attribute.removesuffix('_Executor')}\b", source, re.MULTILINE), name


@pytest.mark.parametrize(
    ("changes", "extra", "said"),
    [
        ({"split": MOVING}, (), "--as_of: a date is expected for relative split bounds"),
        ({"split": MOVING}, ("--as_of", "today"), "as_of: a date written as YYYY-MM-DD is expected. Received: `today`"),
        ({}, ("--as_of", "2022-05-05"), "as_of: a spec whose split bounds are days relative"),
        ({"model": {"name": "din", "attention_hiden": 3}}, (), "Did you mean `attention_hidden`?"),
        ({}, ("--seed", "-1"), "seed: a whole number from 0 on is expected"),
        ({}, ("--job", "/dev/null/job.json"), "--job: a file that can be written is expected"),
    ],
)
def test_a_mistake_gets_one_message_and_no_job(changes, extra, said, tmp_path, capsys):
    spec = small_problem.write_spec(tmp_path / "small.yaml", **changes)
    assert main(arguments(spec, tmp_path / "job.json", "vertex", *extra)) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_what_differs_is_said(tmp_path, capsys):
    spec = small_problem.write_spec(tmp_path / "small.yaml")
    for target, nodes in (("vertex", 13), ("kubeflow", 11)):
        assert main(arguments(spec, tmp_path / f"{target}.json", target)) == 0
        printed = capsys.readouterr().out
        assert f"note: {NOTES[target]}" in printed
        assert f"small: {nodes} tasks" in printed


def test_nothing_of_the_output_is_written_when_a_managed_pipeline_is_put_together(tmp_path):
    spec = load_spec(small_problem.write_spec(tmp_path / "small.yaml"))
    create_pipeline(PipelineConfig(spec, str(tmp_path / "data"), str(tmp_path / "out"), target="vertex"))
    assert not (tmp_path / "out").exists()
