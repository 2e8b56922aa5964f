"""docs/develop/adding_a_model.md: its package, outside of the repository, is tested, trained, exported and served."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

from serving.export.exporter import export_model
from trainer.models.registry import build_model, find_model
from trainer.training.trainer import train
from transform.errors import SpecError
from transform.features.transform_graph import TransformGraph
from transform.spec.model_sections import Model

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "develop" / "adding_a_model.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder that holds `mypackage` and its tests, as the page has them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "__init__.py").touch()
    for language, block in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        name = {"class Mean": "models", "class Line": "heads", "class Foca": "losses"}
        file = next((f"mypackage/{file}.py" for text, file in name.items() if text in block), "test_mypackage.py")
        if language == "python":
            (folder / file).write_text(block)
    return folder


@pytest.fixture
def importable(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


def section():
    (block,) = (block for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL) if "mypack" in block)
    return Model(**yaml.safe_load(block)["model"])


@pytest.mark.slow
def test_its_tests_are_found_and_pass(package):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{package}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)]
    result = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (passed,) = re.findall(r"(\d+) passed", result.stdout)
    assert int(passed) > 25


@pytest.mark.slow
def test_it_is_trained_exported_and_served(small, importable, tmp_path):
    training = small.spec.training.model_copy(update={"epochs": 3, "gradients_every": 0, "early_stopping": None})
    spec = small.spec.model_copy(update={"model": section(), "training": training})
    trained = train(spec, small.inputs(), small.transformed["train"], small.transformed["eval"], str(tmp_path / "run"))
    assert trained.model.head.width == 8
    assert trained.epochs[-1]["loss"] < trained.epochs[0]["loss"]
    assert max(task["auc"] for task in trained.epochs[-1]["eval"].values()) > 0.55

    preprocess = TransformGraph(small.transform_output.transform_savedmodel_dir)
    export_model(spec, trained.model, preprocess, str(tmp_path / "1"))
    served = tf.saved_model.load(str(tmp_path / "1"))
    (record,) = tf.data.TFRecordDataset(small.raw["test"], "GZIP").take(1).as_numpy_iterator()
    outputs = served.signatures["serving_default"](tf.constant([record]))
    assert np.ptp(outputs["score"].numpy()) > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"name": "nopackage.models:My"},
            "model.name: a module that can be imported is expected",
        ),
        ({"name": "mypackage.models:Mine"}, "model.name: a name in the module `mypackage.models` is expected"),
        (
            {"name": "mypackage.heads:Linear"},
            "a subclass of `trainer.models.base.RankingModel` is expected",
        ),
        (
            {"name": "mypackage.models:MeanPooling", "b": 1},
            "model.b: a setting of `mypackage.*Known",
        ),
        (
            {"name": "din", "head": {"name": "mypackage.heads:Linear", "width": "w"}},
            "model.head.width: .*'w'",
        ),
        ({"name": "onerank", "head": {"name": "mmoe"}}, "model.head: no head is expected.*Received: `mmoe`. Leave"),
        (
            {"name": "din", "head": {"name": "mmo"}},
            "model.head.name: one of .*Received: `mmo`. Did you mean `mmoe`",
        ),
        ({"name": "din", "loss": {"name": "mypackage.losses:Focal", "gama": 1}}, "model.loss.gama: .*mean `gamma`"),
    ],
)
def test_mistakes_name_the_place_and_the_cure(importable, model, message):
    with pytest.raises(SpecError, match=message):
        find_model(Model(**model))


def test_a_module_that_fails_says_how(importable):
    (importable / "broken.py").write_text("import no_such_library\n")
    with pytest.raises(SpecError, match="Received: `broken`, ModuleNotFoundError: No module named 'no_such_library'"):
        find_model(Model(name="broken:My"))


def test_settings_of_an_own_loss_reach_it(small_inputs, importable):
    model = build_model(section(), small_inputs)
    assert model.make_loss(section().loss).gamma == 2.0


@pytest.fixture
def small_inputs():
    from tests.testing.random_batches import INPUTS

    return INPUTS
