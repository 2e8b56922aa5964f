"""The components without TFX, and the pipeline without the model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.testing import small_problem
from tests.testing.repository import repository
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.pipeline import create_pipeline
from tfx_pipeline.topology import topology
from transform.errors import SpecError
from transform.spec.loading import load_spec


@pytest.mark.parametrize("served_requests", [0, 20])
def test_the_light_topology_is_that_of_the_pipeline(tmp_path, served_requests):
    changed = {"evaluation": {"served_requests": served_requests}}
    spec = load_spec(small_problem.write_spec(tmp_path / "small.yaml", **changed))
    pipeline = create_pipeline(PipelineConfig(spec, str(tmp_path / "data"), str(tmp_path / "out")))
    known = topology(spec)
    upstream = {node.id: {before.id for before in node.upstream_nodes} for node in pipeline.components}
    assert {component: set(before) for component, before in known.items()} == upstream
    assert ("ServingValidator" in known) == bool(served_requests)
    for number, before in enumerate(known.values()):
        assert set(before) <= set(list(known)[:number]), "a component comes after those that it waits for"


def test_the_topology_is_known_without_tensorflow(tmp_path):
    spec = small_problem.write_spec(tmp_path / "small.yaml")
    program = (
        "import sys\n"
        "from tfx_pipeline.runners.airflow.settings import AirflowSettings\n"
        "from tfx_pipeline.config import PipelineConfig\n"
        "from tfx_pipeline.topology import topology\n"
        "from transform.spec.loading import load_spec\n"
        "assert topology(load_spec(sys.argv[1]))['Trainer']\n"
        "print(*({'apache_beam', 'keras', 'ml_metadata', 'tensorflow', 'tfx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(spec)]
    done = subprocess.run(command, cwd=repository(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_pipeline_is_put_together_without_the_model(tmp_path, monkeypatch):
    """Its tables may be large, and every runner puts the pipeline together."""
    spec = load_spec(small_problem.write_spec(tmp_path / "small.yaml"))
    monkeypatch.setattr("keras.Model.__init__", lambda *_, **__: pytest.fail("a model was built"))
    create_pipeline(PipelineConfig(spec, str(tmp_path / "data"), str(tmp_path / "out")))
    wrong = spec.model_copy(update={"model": spec.model.model_copy(update={"name": "onerang"})})
    with pytest.raises(SpecError, match="Did you mean `onerank`"):
        create_pipeline(PipelineConfig(wrong, str(tmp_path / "data"), str(tmp_path / "out")))
