"""Shared fixtures. The environment is set before anything imports TensorFlow."""

from __future__ import annotations

from transform.environment import prepare_environment

prepare_environment()

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


def repository() -> Path:
    """The root of the project."""
    return Path(__file__).resolve().parent.parent
