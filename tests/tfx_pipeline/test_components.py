"""The pipeline's own parts, one by one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grimp
import numpy as np
import pytest
import small_problem
from conftest import repository
from google.protobuf import text_format
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.types import standard_artifacts
from tfx.utils.io_utils import SchemaReader

from serving.export.model_files import ASSETS_EXTRA, SPEC_FILE
from serving.tools.server_config import MODELS_CONFIG
from tfx_pipeline.components.anomaly_gate import AnomalyGate
from tfx_pipeline.components.atomic_pusher import AtomicPusherExecutor
from tfx_pipeline.components.blessed_baseline import BlessedBaselineStrategy
from tfx_pipeline.components.spec_schema import SpecSchema
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.metadata import cached_code
from tfx_pipeline.metadata.code_version import code_version
from tfx_pipeline.pipeline import create_pipeline
from tfx_pipeline.topology import topology
from transform.errors import DataError, PipelineError, SpecError, find_user_error
from transform.features.request_example import raw_schema
from transform.ingest.check_counts import check_counts
from transform.source_hash import source_files
from transform.spec.data_sections import Task
from transform.spec.ranking_spec import RankingSpec


@pytest.fixture
def spec(tmp_path: Path) -> RankingSpec:
    return RankingSpec.load(small_problem.write_spec(tmp_path / "small.yaml"))


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


GOOD_COUNTS = {
    "impressions_read": 10,
    "users": 3,
    **{f"{split}_requests": 1 for split in ("train", "eval", "test")},
    **{f"train_positives_{task}": 1 for task in ("buy", "save", "share")},
}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"test_requests": 0}, "split.test: requests with `day` from 7 to 8"),
        ({"eval_requests": 0}, "split.eval"),
        ({"train_positives_save": 0}, "tasks `save`: positives in `saved`"),
        ({"users_without_table_row": 3}, "data.tables.user"),
        ({"duplicates_dropped": 2, "impressions_without_item_row": 8}, "data.tables.item"),
    ],
)
def test_examples_that_nothing_can_be_learned_from_are_refused(spec, counts, said):
    check_counts(spec, {**GOOD_COUNTS, "users_without_table_row": 2, "impressions_without_item_row": 7})
    with pytest.raises(DataError, match=said):
        check_counts(spec, {**GOOD_COUNTS, **counts})


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


def test_code_version_sees_every_edit_in_a_package(tmp_path, monkeypatch):
    package = tmp_path / "edited_package"
    (package / "inner").mkdir(parents=True)
    for path in ("__init__.py", "inner/__init__.py", "inner/part.py"):
        (package / path).write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_version("edited_package")
    assert code_version("edited_package") == before
    (package / "inner" / "part.py").write_text("x = 2\n")
    assert code_version("edited_package") != before


def cache_keys(spec: RankingSpec, folder: Path) -> dict[str, str]:
    """What each component is cached by, as far as it follows from spec and code."""
    pipeline = create_pipeline(PipelineConfig(spec, str(folder / "data"), str(folder / "out")))
    keys = {component.id: str(sorted(component.exec_properties.items())) for component in pipeline.components}
    return {node: key for node, key in keys.items() if node != "AtomicPusher"}  # it is never cached


@pytest.mark.parametrize("served_requests", [0, 20])
def test_the_light_topology_is_that_of_the_pipeline(tmp_path, served_requests):
    changed = {"evaluation": {"served_requests": served_requests}}
    spec = RankingSpec.load(small_problem.write_spec(tmp_path / "small.yaml", **changed))
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
        "from transform.spec.ranking_spec import RankingSpec\n"
        "assert topology(RankingSpec.load(sys.argv[1]))['Trainer']\n"
        "print(*({'apache_beam', 'keras', 'ml_metadata', 'tensorflow', 'tfx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(spec)]
    done = subprocess.run(command, cwd=repository(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_pipeline_is_put_together_without_the_model(tmp_path, monkeypatch):
    """Its tables may be large, and every runner puts the pipeline together."""
    spec = RankingSpec.load(small_problem.write_spec(tmp_path / "small.yaml"))
    monkeypatch.setattr("keras.Model.__init__", lambda *_, **__: pytest.fail("a model was built"))
    create_pipeline(PipelineConfig(spec, str(tmp_path / "data"), str(tmp_path / "out")))
    wrong = spec.model_copy(update={"model": spec.model.model_copy(update={"name": "onerang"})})
    with pytest.raises(SpecError, match="Did you mean `onerank`"):
        create_pipeline(PipelineConfig(wrong, str(tmp_path / "data"), str(tmp_path / "out")))


def holds(folder: str, module: str) -> bool:
    return f"{module}.".startswith(f"{folder}.") or f"{folder}.".startswith(f"{module}.")


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {node for node in before if before[node] != after[node]}


def test_a_change_of_the_spec_reaches_exactly_what_depends_on_it(tmp_path, spec):
    def after(**changes):
        return RankingSpec.load(small_problem.write_spec(tmp_path / "changed.yaml", **changes))

    before = cache_keys(spec, tmp_path)
    assert changed(before, cache_keys(after(), tmp_path)) == set()
    model = cache_keys(after(model={"name": "din", "d": 4}), tmp_path)
    assert changed(before, model) == {"Trainer", "ServingValidator"}
    assert changed(before, cache_keys(spec.with_seed(7), tmp_path)) == {"Trainer"}
    evaluation = cache_keys(after(evaluation={"slices": [["brand"]]}), tmp_path)
    assert changed(before, evaluation) == {"Evaluator"}
    served = {**small_problem.SPEC["evaluation"], "served_requests": 50}
    assert changed(before, cache_keys(after(evaluation=served), tmp_path)) == {"ServingValidator"}
    split = {**small_problem.SPEC["split"], "train": [1, 4]}
    data = changed(before, cache_keys(after(split=split), tmp_path))
    assert {"ImpressionExampleGen", "Transform", "Trainer"} <= data


def test_edited_code_reaches_exactly_what_runs_it(tmp_path, spec, monkeypatch):
    before = cache_keys(spec, tmp_path)
    real = code_version

    def edited(module: str):
        """As if a file of the module was edited: the folders that hold it, or lie in it, have another hash."""
        return lambda *modules: real(*modules) + ("edited" if any(holds(name, module) for name in modules) else "")

    expected = {
        "trainer.metrics.ranking_metrics": {"Trainer", "ServingValidator", "Evaluator", "Baselines"},
        "serving.export.signatures": {"Trainer", "ServingValidator"},
        "serving": {"Trainer", "ServingValidator"},
        "tfx_pipeline.evaluation.serving_validation": {"ServingValidator"},
        "tfx_pipeline.evaluation.extractors": {"Evaluator"},
    }
    for package, nodes in expected.items():
        monkeypatch.setattr("tfx_pipeline.pipeline.code_version", edited(package))
        assert changed(before, cache_keys(spec, tmp_path)) == nodes, package
    monkeypatch.setattr("tfx_pipeline.pipeline.code_version", edited("transform"))
    assert {"ImpressionExampleGen", "Transform", "Trainer"} <= changed(before, cache_keys(spec, tmp_path))


CACHED_BY = {
    "tfx_pipeline.components.impression_example_gen": cached_code.EXAMPLE_GEN,
    "transform.features.preprocessing": cached_code.TRANSFORM,
    "tfx_pipeline.tfx_functions": cached_code.trainer("onerank"),
    "trainer.models.onerank.model": cached_code.trainer("onerank"),
    "trainer.models.din.model": cached_code.trainer("din"),
    "tfx_pipeline.components.serving_validator": cached_code.serving_validator("onerank"),
    "tfx_pipeline.evaluation.extractors": cached_code.EVALUATOR,
    "tfx_pipeline.evaluation.tfma_metrics": cached_code.EVALUATOR,
    "tfx_pipeline.evaluation.tfma_plots": cached_code.EVALUATOR,
    "tfx_pipeline.components.baselines": cached_code.BASELINES,
}


@pytest.mark.parametrize("module", CACHED_BY)
def test_a_component_is_cached_by_all_that_it_imports(module):
    graph = grimp.build_graph("transform", "trainer", "serving", "tfx_pipeline")
    folders = CACHED_BY[module]
    run = {module, *graph.find_upstream_modules(module)}
    assert [name for name in sorted(run) if not any(f"{name}.".startswith(f"{folder}.") for folder in folders)] == []


KEYS_OF_CODE = """
import json, sys
from pathlib import Path
from onerank.commands.train import training_key
from tfx_pipeline.metadata import cached_code
from tfx_pipeline.metadata.code_version import code_version
from transform.spec.ranking_spec import RankingSpec

folders = {
    "ImpressionExampleGen": cached_code.EXAMPLE_GEN,
    "Transform": cached_code.TRANSFORM,
    "Trainer": cached_code.trainer("onerank"),
    "ServingValidator": cached_code.serving_validator("onerank"),
    "Evaluator": cached_code.EVALUATOR,
    "Baselines": cached_code.BASELINES,
}
keys = {name: code_version(*modules) for name, modules in folders.items()}
print(json.dumps({**keys, "onerank train": training_key(RankingSpec.load(sys.argv[1]), Path("prepared"))}))
"""
TRAINS = {"Trainer", "ServingValidator", "onerank train"}
HEAD = "from trainer.heads.registry import register_head\n\n\n@register_head('another')\nclass Another:\n    pass\n"


def keys_of_code(root: Path) -> dict[str, str]:
    """By component the hash of its code in `root`, and what `onerank train` names its checkpoints by."""
    spec = small_problem.write_spec(root / "small.yaml", model={"name": "onerank"})
    done = subprocess.run(
        [sys.executable, "-c", KEYS_OF_CODE, str(spec)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def copied_code(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A copy of the sources that a test may edit, if it mends them again, and the keys before."""
    root = tmp_path_factory.mktemp("code")
    for package in ("onerank", "transform", "trainer", "serving", "tfx_pipeline"):
        shutil.copytree(repository() / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return root, keys_of_code(root)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (
            {"trainer/models/another/__init__.py": "", "trainer/models/another/model.py": "@register_model('another')"},
            {},
        ),
        ({"trainer/models/din/model.py": "# an edit"}, {}),
        ({"trainer/heads/another.py": HEAD}, {}),
        ({"trainer/losses/another/__init__.py": "", "trainer/losses/another/loss.py": '@register_loss("another")'}, {}),
        ({"trainer/heads/shared_by_all.py": "# an edit"}, TRAINS),
        ({"trainer/models/base.py": "# an edit"}, TRAINS),
        ({"trainer/models/onerank/model.py": "# an edit"}, TRAINS),
        ({"trainer/ops/cc/kernels.cc": "// an edit"}, TRAINS),
        ({"transform/features/padding.py": "# an edit"}, TRAINS),
        ({"transform/ingest/request_builder.py": "# an edit"}, {"ImpressionExampleGen"}),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) and value else "",
)
def test_an_edit_on_disk_reaches_exactly_what_runs_it(copied_code, edits, expected):
    root, before = copied_code
    old = {name: (root / name).read_text() if (root / name).exists() else None for name in edits}
    for name, text in edits.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"{old[name] or ''}\n{text}\n")
    try:
        assert changed(before, keys_of_code(root)) == set(expected)
    finally:
        for name, text in old.items():
            (root / name).write_text(text) if text is not None else (root / name).unlink()


def sources(folders: tuple[str, ...]) -> set[str]:
    files = {path.relative_to(repository()) for folder in folders for path, _ in source_files(folder)}
    return {str(path) for path in files}


def test_another_model_retrains_nobody():
    of_models = {path for path in sources(cached_code.trainer("onerank")) if path.startswith("trainer/models/")}
    assert "trainer/models/onerank/model.py" in of_models
    others = {path for path in of_models if not path.startswith("trainer/models/onerank/")}
    assert others == {"trainer/models/base.py", "trainer/models/registry.py"}


def test_an_edit_of_the_operations_in_cpp_retrains():
    for path in ("trainer/ops/cc/kernels.cc", "trainer/ops/cc/attention_kernels.h"):
        assert path in sources(cached_code.trainer("onerank"))
        assert path not in sources(cached_code.EXAMPLE_GEN) | sources(cached_code.TRANSFORM)


def test_an_edit_of_the_padding_concerns_neither_the_examples_nor_the_server():
    assert "transform/features/padding.py" in sources(cached_code.trainer("onerank"))
    assert "transform/features/padding.py" not in sources(cached_code.EXAMPLE_GEN) | sources(cached_code.TRANSFORM)
    assert not any(path.startswith("serving/server") for path in sources(cached_code.trainer("onerank")))


def test_schema_is_cached_by_its_content_and_written_where_tfx_reads_it(tmp_path, spec):
    before = cache_keys(spec, tmp_path)
    other = cache_keys(spec.model_copy(update={"sequences": ()}), tmp_path)
    assert "SpecSchema" in changed(before, other)
    artifact = standard_artifacts.Schema()
    artifact.uri = str(tmp_path)
    text = text_format.MessageToString(raw_schema(spec))
    SpecSchema.EXECUTOR_SPEC.executor_class().Do({}, {"schema": [artifact]}, {"text": text})
    assert SchemaReader().read(str(tmp_path / "schema.pbtxt")) == raw_schema(spec)


def test_nothing_of_the_output_is_written_when_a_managed_pipeline_is_put_together(tmp_path, spec):
    create_pipeline(PipelineConfig(spec, str(tmp_path / "data"), str(tmp_path / "out"), target="vertex"))
    assert not (tmp_path / "out").exists()


def test_baselines_are_smoothed_item_rates_of_the_train_split(small):
    import tensorflow as tf

    from tfx_pipeline.components.baselines import SMOOTHING, _candidates, _evaluate, _sum_columns
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


@pytest.mark.parametrize("error", [SpecError("a cure"), DataError("a cure"), PipelineError("a cure")])
def test_a_users_mistake_is_found_wherever_a_library_put_it(error):
    assert find_user_error(error) == "a cure"
    wrapped = RuntimeError("beam failed")
    wrapped.__cause__ = error
    assert find_user_error(wrapped) == "a cure"
    name = type(error).__name__
    as_text = f"Traceback ...\n  File x\ntransform.errors.{name}: a cure [while running 'BuildRequests']\n"
    assert find_user_error(RuntimeError(as_text)) == "a cure"
    assert find_user_error(RuntimeError("no user's mistake")) is None
