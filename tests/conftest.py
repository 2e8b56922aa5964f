"""Shared fixtures. The environment is set before anything imports TensorFlow."""

from __future__ import annotations

from transform.environment import prepare_environment

prepare_environment()

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import pytest
import small_problem

from transform.spec import RankingSpec


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test draws the same numbers each time, in whatever order and company it runs."""
    keras.utils.set_random_seed(0)


@dataclass(frozen=True)
class Small:
    """The small problem as the Trainer sees it, made without TFX."""

    spec: RankingSpec
    data_dir: str
    raw: dict[str, list[str]]
    transformed: dict[str, list[str]]
    transform_output: Any

    def inputs(self) -> Any:
        from transform.columns import ModelInputs

        return ModelInputs.from_spec(self.spec, self.transform_output.vocabulary_size_by_name)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return _prepared(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small_counting(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small problem with counting features of every group."""
    return _prepared(tmp_path_factory.mktemp("counting"), aggregates=small_problem.AGGREGATES)


def _prepared(folder: Path, **changes: Any) -> Small:
    from benchmarks.prepare import prepare
    from transform.impressions import SPLITS

    data_dir = str(small_problem.write_data(folder / "data"))
    spec = RankingSpec.load(small_problem.write_spec(folder / "small.yaml", **changes))
    prepared = prepare(spec, data_dir, folder)
    raw, transformed = ({split: prepared.files(kind, split) for split in SPLITS} for kind in ("raw", "transformed"))
    return Small(spec, data_dir, raw, transformed, prepared.transform_output)


@dataclass(frozen=True)
class Served:
    """An exported model of the small problem."""

    spec: RankingSpec
    model: Any
    path: str

    @functools.cached_property
    def loaded(self) -> Any:
        """The SavedModel, read again."""
        import tensorflow as tf

        return tf.saved_model.load(self.path)


@pytest.fixture(scope="session")
def served(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One that takes no more than 40 candidates; its warm-up requests are made of requests of the test split."""
    import tensorflow as tf

    serving = small.spec.serving.model_copy(update={"max_candidates": 40, "warmup_candidates": (1, 7)})
    records = [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP").take(2)]
    return export(small, small.spec.model_copy(update={"serving": serving}), tmp_path_factory.mktemp("served"), records)


def export(small: Small, spec: RankingSpec, folder: Path, requests: Any = ()) -> Served:
    """Exports a model of a variant of the small problem's spec."""
    from serving.export import export_model

    model, path = far_from_start(small, spec), str(folder / "1")
    export_model(spec, model, small.transform_output.transform_features_layer(), path, requests)
    return Served(spec, model, path)


def far_from_start(small: Small, spec: RankingSpec, by: float = 0.3) -> Any:
    """A model whose scores differ, as they don't where a training starts."""
    import numpy as np

    from trainer.models.registry import build_model

    keras.utils.set_random_seed(3)
    model = build_model(spec.model, small.inputs())
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(variable + random.normal(0, by, variable.shape))
    return model


def repository() -> Path:
    """The root of the project."""
    return Path(__file__).resolve().parent.parent
