"""What components are cached by: each edit of spec or code reaches exactly what depends on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from google.protobuf import text_format
from tfx.types import standard_artifacts
from tfx.utils.io_utils import SchemaReader

from tests.testing import small_problem
from tests.testing.repository import repository
from tfx_pipeline.components.spec_schema import SpecSchema
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.metadata import cached_code
from tfx_pipeline.metadata.code_version import code_version
from tfx_pipeline.pipeline import create_pipeline
from transform.features.request_example import raw_schema
from transform.source_hash import source_files
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec


@pytest.fixture
def spec(tmp_path: Path) -> RankingSpec:
    return load_spec(small_problem.write_spec(tmp_path / "small.yaml"))


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


def holds(folder: str, module: str) -> bool:
    return f"{module}.".startswith(f"{folder}.") or f"{folder}.".startswith(f"{module}.")


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {node for node in before if before[node] != after[node]}


@pytest.mark.slow
def test_a_change_of_the_spec_reaches_exactly_what_depends_on_it(tmp_path, spec):
    def after(**changes):
        return load_spec(small_problem.write_spec(tmp_path / "changed.yaml", **changes))

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


@pytest.mark.slow
def test_edited_code_reaches_exactly_what_runs_it(tmp_path, spec, monkeypatch):
    before = cache_keys(spec, tmp_path)
    real = code_version

    def edited(module: str):
        """As if a file of the module was edited: the folders that hold it, or lie in it, have another hash."""
        return lambda *modules: real(*modules) + ("edited" if any(holds(name, module) for name in modules) else "")

    expected = {
        "trainer.metrics.ranking_metrics": {"Trainer", "ServingValidator", "Evaluator", "LabelStatistics"},
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


@pytest.mark.slow
@pytest.mark.parametrize("section, node", [("evaluation", "Evaluator"), ("training", "Trainer")])
def test_an_edit_of_a_metric_of_ones_own_reaches_what_measures_it(tmp_path, monkeypatch, section, node):
    metric = f"edited_for_{section}:mine"
    changes = {
        "evaluation": {"metrics": ["auc"], "gates": {"buy": {"metric": metric}}},
        "training": {"early_stopping": {"task": "buy", "metric": metric}},
    }
    module = tmp_path / f"edited_for_{section}.py"
    module.write_text(
        "from onerank import Metric\n"
        "mine = Metric('mine', 'higher', best=1.0, bound=0.0, function=lambda scores: scores.mean())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = load_spec(small_problem.write_spec(tmp_path / "own.yaml", **{section: changes[section]}))
    before = cache_keys(spec, tmp_path)
    module.write_text(module.read_text().replace("mean", "max"))
    assert changed(before, cache_keys(spec, tmp_path)) == {node}


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
    "tfx_pipeline.components.label_statistics": cached_code.LABEL_STATISTICS,
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
from transform.spec.loading import load_spec

folders = {
    "ImpressionExampleGen": cached_code.EXAMPLE_GEN,
    "Transform": cached_code.TRANSFORM,
    "Trainer": cached_code.trainer("onerank"),
    "ServingValidator": cached_code.serving_validator("onerank"),
    "Evaluator": cached_code.EVALUATOR,
    "LabelStatistics": cached_code.LABEL_STATISTICS,
}
keys = {name: code_version(*modules) for name, modules in folders.items()}
print(json.dumps({**keys, "onerank train": training_key(load_spec(sys.argv[1]), Path("prepared"))}))
"""
TRAINS = {"Trainer", "ServingValidator", "onerank train"}
HEAD = "from trainer.heads.registry import HEADS\n\n\n@HEADS.register('another')\nclass Another:\n    pass\n"


def in_folder(room: str) -> dict[str, str]:
    return {f"trainer/{room}/another/__init__.py": ""}


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (
            {
                "trainer/models/another/__init__.py": "",
                "trainer/models/another/model.py": "@MODELS.register('another')",
            },
            {},
        ),
        ({"trainer/models/din/model.py": "# an edit"}, {}),
        ({"trainer/heads/another.py": HEAD}, {}),
        (
            {**in_folder("losses"), "trainer/losses/another/loss.py": '@LOSSES.register("another")'},
            {},
        ),
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
    assert others == {f"trainer/models/{name}.py" for name in ("base", "headed", "recomputable", "registry", "setwise")}


def test_an_edit_of_the_operations_in_cpp_retrains():
    for path in ("trainer/ops/cc/kernels.cc", "trainer/ops/cc/attention_kernels.h"):
        assert path in sources(cached_code.trainer("onerank"))
        assert path not in sources(cached_code.EXAMPLE_GEN) | sources(cached_code.TRANSFORM)


def test_an_edit_of_the_padding_concerns_neither_the_examples_nor_the_server():
    assert "transform/features/padding.py" in sources(cached_code.trainer("onerank"))
    assert "transform/features/padding.py" not in sources(cached_code.EXAMPLE_GEN) | sources(cached_code.TRANSFORM)
    assert not any(path.startswith("serving/server") for path in sources(cached_code.trainer("onerank")))


@pytest.mark.slow
def test_schema_is_cached_by_its_content_and_written_where_tfx_reads_it(tmp_path, spec):
    before = cache_keys(spec, tmp_path)
    other = cache_keys(spec.model_copy(update={"sequences": ()}), tmp_path)
    assert "SpecSchema" in changed(before, other)
    artifact = standard_artifacts.Schema()
    artifact.uri = str(tmp_path)
    text = text_format.MessageToString(raw_schema(spec))
    SpecSchema.EXECUTOR_SPEC.executor_class().Do({}, {"schema": [artifact]}, {"text": text})
    assert SchemaReader().read(str(tmp_path / "schema.pbtxt")) == raw_schema(spec)
