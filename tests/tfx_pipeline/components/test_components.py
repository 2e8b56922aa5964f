"""The pipeline's own parts, one by one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.types import standard_artifacts

from serving.export.model_files import ASSETS_EXTRA, SPEC_FILE
from serving.tools.server_config import MODELS_CONFIG
from tests.testing import small_problem
from tfx_pipeline.components.anomaly_gate import AnomalyGate
from tfx_pipeline.components.atomic_pusher import AtomicPusherExecutor
from tfx_pipeline.components.blessed_baseline import BlessedBaselineStrategy
from transform.errors import DataError
from transform.spec.data_sections import Task
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec


@pytest.fixture
def spec(tmp_path: Path) -> RankingSpec:
    return load_spec(small_problem.write_spec(tmp_path / "small.yaml"))


def model_artifact(folder: Path, number: int, spec: RankingSpec) -> standard_artifacts.Model:
    path = folder / str(number) / "Format-Serving"
    (path / ASSETS_EXTRA).mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"a model")
    (path / ASSETS_EXTRA / SPEC_FILE).write_text(spec.to_json())
    artifact = standard_artifacts.Model()
    artifact.id, artifact.uri = number, str(folder / str(number))
    return artifact


def blessing(number: int, of_model: int, blessed: bool) -> standard_artifacts.ModelBlessing:
    artifact = standard_artifacts.ModelBlessing()
    artifact.id = number
    artifact.set_int_custom_property("current_model_id", of_model)
    artifact.set_int_custom_property("blessed", int(blessed))
    return artifact


def baseline_of(
    candidate: int, models: dict[int, standard_artifacts.Model], blessings: list, served: Sequence = ()
) -> list[int]:
    given = {"model": list(models.values()), "model_blessing": blessings, "candidate": [models[candidate]]}
    given["infra_blessing"] = list(served)
    return [model.id for model in BlessedBaselineStrategy().resolve_artifacts(None, given)["model"]]


def test_baseline_is_the_latest_blessed_model_other_than_the_candidate(tmp_path, spec):
    models = {number: model_artifact(tmp_path, number, spec) for number in (1, 2, 3)}
    assert baseline_of(1, models, []) == []
    assert baseline_of(1, models, [blessing(11, 1, True)]) == [], "a model is not its own baseline"
    assert baseline_of(2, models, [blessing(11, 1, True)]) == [1]
    assert baseline_of(3, models, [blessing(11, 1, True), blessing(12, 2, False)]) == [1]
    assert baseline_of(3, models, [blessing(12, 2, True), blessing(13, 1, True)]) == [1], "blessed last, not made last"


def test_a_model_that_was_blessed_but_not_served_is_no_baseline(tmp_path, spec):
    """It was never pushed: the model before it is still the one that is live."""
    models, blessings = {n: model_artifact(tmp_path, n, spec) for n in (1, 2, 3)}, [blessing(11, 1, True)]
    blessings.append(blessing(12, 2, True))
    refused, accepted = blessing(21, 2, False), blessing(22, 2, True)
    assert baseline_of(3, models, blessings, [refused]) == [1]
    assert baseline_of(3, models, blessings, [refused, accepted]) == [2], "the last word counts"
    assert baseline_of(3, models, blessings) == [2], "of models that were not served nothing is known"


def test_a_model_of_other_tasks_or_inputs_is_no_baseline(tmp_path, spec, caplog):
    more = Task(name="rate", label="rated")
    other = spec.model_copy(update={"tasks": (*spec.tasks, more)})
    models = {1: model_artifact(tmp_path, 1, other), 2: model_artifact(tmp_path, 2, spec)}
    assert baseline_of(2, models, [blessing(11, 1, True)]) == []
    assert "is no baseline: rate changed since" in caplog.text
    numeric = spec.features.candidate[-1].model_copy(update={"type": "categorical"})
    features = spec.features.model_copy(update={"candidate": (*spec.features.candidate[:-1], numeric)})
    models[1] = model_artifact(tmp_path, 3, spec.model_copy(update={"features": features}))
    models[1].id = 1
    assert baseline_of(2, models, [blessing(11, 1, True)]) == [], "a type that changed is another input"


def test_a_baseline_whose_tasks_stand_in_another_order_is_one(tmp_path, spec):
    other = spec.model_copy(update={"tasks": spec.tasks[::-1]})
    models = {1: model_artifact(tmp_path, 1, other), 2: model_artifact(tmp_path, 2, spec)}
    assert baseline_of(2, models, [blessing(11, 1, True)]) == [1]


def test_the_candidate_among_many_is_what_the_newest_execution_put_out(tmp_path, spec):
    """Airflow's runner gives the models of all runs; a cached one is not the one that was made last."""
    connection = metadata_store_pb2.ConnectionConfig()
    connection.fake_database.SetInParent()
    store = MetadataStore(connection)
    model_type = store.put_artifact_type(metadata_store_pb2.ArtifactType(name="Model"))
    trainer_type = store.put_execution_type(metadata_store_pb2.ExecutionType(name="Trainer"))
    ids = store.put_artifacts([metadata_store_pb2.Artifact(type_id=model_type, uri=str(n)) for n in (1, 2)])
    models = {number: model_artifact(tmp_path, number, spec) for number in ids}
    event = metadata_store_pb2.Event
    for number in (ids[0], ids[1], ids[0]):  # the third run finds the first one's model in the cache
        execution = metadata_store_pb2.Execution(type_id=trainer_type)
        put_out = event(artifact_id=number, type=event.OUTPUT)
        store.put_execution(execution, [(None, put_out)], [])
    reads = metadata_store_pb2.Execution(type_id=trainer_type)
    store.put_execution(reads, [(None, event(artifact_id=ids[1], type=event.INPUT))], [])
    given = {"model": list(models.values()), "candidate": list(models.values())}
    given["model_blessing"] = [blessing(11, ids[0], True), blessing(12, ids[1], True)]
    found = BlessedBaselineStrategy().resolve_artifacts(store, given)
    assert [model.id for model in found["candidate"]] == [ids[0]]
    assert [model.id for model in found["model"]] == [ids[1]]


def anomalies_artifact(folder: Path, *found: str) -> standard_artifacts.ExampleAnomalies:
    artifact = standard_artifacts.ExampleAnomalies()
    artifact.uri, artifact.split_names = str(folder), json.dumps(["train", "eval"])
    for split in ("train", "eval"):
        (folder / f"Split-{split}").mkdir(parents=True)
        anomalies = anomalies_pb2.Anomalies()
        for name in found if split == "eval" else ():
            anomalies.anomaly_info[name].description = "Examples contain values outside the domain."
        (folder / f"Split-{split}" / "SchemaDiff.pb").write_bytes(anomalies.SerializeToString())
    return artifact


def test_anomalies_stop_a_run_unless_they_are_allowed(tmp_path):
    gate = AnomalyGate.EXECUTOR_SPEC.executor_class()
    bad, good = anomalies_artifact(tmp_path / "bad", "price"), anomalies_artifact(tmp_path / "good")
    with pytest.raises(DataError, match="eval: price: Examples contain values outside.*\n.*--allow_anomalies"):
        gate.Do({"anomalies": [bad]}, {}, {"allow_anomalies": 0})
    gate.Do({"anomalies": [bad]}, {}, {"allow_anomalies": 1})
    gate.Do({"anomalies": [good]}, {}, {"allow_anomalies": 0})


def push(executor: AtomicPusherExecutor, model: standard_artifacts.Model, blessed: bool, base: Path):
    pushed = standard_artifacts.PushedModel()
    executor.Do(
        {"model": [model], "model_blessing": [blessing(9, model.id, blessed)]},
        {"pushed_model": [pushed]},
        {"push_destination": json.dumps({"filesystem": {"base_directory": str(base)}})},
    )
    return pushed


def test_push_is_whole_numeric_and_rising(tmp_path, spec):
    base = tmp_path / "serving"
    for number in range(3):
        model = model_artifact(tmp_path, number, spec.with_seed(number))
        push(AtomicPusherExecutor(), model, True, base)
    names = sorted(entry.name for entry in base.iterdir())
    assert len(names) == 3, "pushes in one second are versions of their own"
    for name in names:
        assert name.isdigit()
        assert (base / name / "saved_model.pb").read_bytes() == b"a model"
        assert (base / name / ASSETS_EXTRA / SPEC_FILE).exists()


def test_a_push_tells_tensorflow_serving(tmp_path, spec):
    base = tmp_path / "serving" / "small"
    for number in range(2):
        push(AtomicPusherExecutor(), model_artifact(tmp_path, number, spec.with_seed(number)), True, base)
    old, new = sorted(entry.name for entry in base.iterdir())
    config = (base.parent / MODELS_CONFIG).read_text()
    for label, version in (("stable", old), ("canary", new)):
        assert re.search(rf'key: "{label}"\s+value: {version}\n', config)


def test_pushing_the_newest_version_again_does_nothing_and_a_removed_one_comes_back(tmp_path, spec):
    base, models = tmp_path / "serving", [model_artifact(tmp_path, n, spec.with_seed(n)) for n in (1, 2)]
    for model in (models[0], models[0], models[1], models[0]):
        pushed = push(AtomicPusherExecutor(), model, True, base)
    versions = sorted(int(entry.name) for entry in base.iterdir())
    assert len(versions) == 3, "the first model again is a third version: it is not the newest"
    assert pushed.get_string_custom_property("pushed_version") == str(versions[-1])
    shutil.rmtree(base / str(versions[-1]))
    push(AtomicPusherExecutor(), models[0], True, base)
    assert len(list(base.iterdir())) == 3


def test_what_a_killed_push_left_is_swept(tmp_path, spec):
    (tmp_path / "serving" / ".unfinished-1").mkdir(parents=True)
    push(AtomicPusherExecutor(), model_artifact(tmp_path, 1, spec), True, tmp_path / "serving")
    (left,) = (tmp_path / "serving").iterdir()
    assert left.name.isdigit()


def test_a_push_that_fails_leaves_nothing(tmp_path, spec, monkeypatch):
    base, model = tmp_path / "serving", model_artifact(tmp_path, 1, spec)

    def dies(source: str, target: str) -> None:
        Path(target).mkdir(parents=True)
        (Path(target) / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr("tfx_pipeline.components.atomic_pusher.io_utils.copy_dir", dies)
    with pytest.raises(OSError, match="disk full"):
        push(AtomicPusherExecutor(), model, True, base)
    assert not list(base.iterdir())


def test_a_model_that_is_not_blessed_is_not_pushed(tmp_path, spec):
    pushed = push(AtomicPusherExecutor(), model_artifact(tmp_path, 1, spec), False, tmp_path / "serving")
    assert not (tmp_path / "serving").exists()
    assert pushed.get_int_custom_property("pushed") == 0


def test_label_statistics_are_smoothed_item_rates_of_the_train_split(small):
    import tensorflow as tf

    from tfx_pipeline.components.label_statistics import SMOOTHING, _candidates, _evaluate, _sum_columns
    from trainer.metrics.ranking_metrics import Rows, compute

    tasks, item = small.spec.task_names, small.spec.item_feature
    rows = {}
    for split in ("train", "test"):
        records = tf.data.TFRecordDataset(small.raw[split], "GZIP")
        rows[split] = [row for record in records for row in _candidates(record.numpy(), item, tasks)]
    by_item: dict[str, list] = {}
    for _, name, counts in rows["train"]:
        by_item.setdefault(name, []).append(counts)
    result = _evaluate(rows["test"], {name: _sum_columns(counts) for name, counts in by_item.items()}, tasks, True)
    train = np.array([counts for _, _, counts in rows["train"]])
    k = tasks.index("share")
    mean = train[:, 0, k].sum() / train[:, 1, k].sum()
    scores = []
    for _, name, _ in rows["test"]:
        own = np.array(by_item.get(name, [np.zeros((2, len(tasks)))]))[:, :, k].sum(0)
        scores.append((own[0] + SMOOTHING * mean) / (own[1] + SMOOTHING))
    test = np.array([counts for _, _, counts in rows["test"]])
    groups = np.array([request for request, _, _ in rows["test"]])
    expected = Rows.observed(test[:, 0, k], np.array(scores), groups, test[:, 1, k])
    assert result["share"]["popularity"]["auc"] == pytest.approx(compute("auc", expected), abs=1e-9)
    assert result["share"]["popularity"]["gauc"] == pytest.approx(compute("gauc", expected), abs=1e-9)
    assert result["share"]["base_rate"] == pytest.approx(test[:, 0, k].sum() / test[:, 1, k].sum())
    assert result["buy"]["impressions"] == len(test)
