"""Shared fixtures. The environment is set before anything imports TensorFlow."""

from __future__ import annotations

import os

from transform.environment import prepare_environment

prepare_environment()
# XLA compiles in half the time without LLVM's optimizations. `make test-other` sets the variable to nothing, and so
# runs the code that users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import fcntl
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import pytest

from tests.testing import small_problem
from tests.testing.far_from_start import far_from_start
from tests.testing.tiers import TIER_OF_FIXTURE, TIERS, costly
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec

LONGEST = (  # the files that take longest, so that no worker is alone with one at the end
    "tfx_pipeline/test_pipeline.py",
    "test_packaging.py",
    "trainer/training/test_training_settings.py",
    "trainer/training/test_trainer.py",
    "test_notebooks.py",
    "trainer/training/test_resume.py",
    "tfx_pipeline/runners/test_bad_input.py",
    "trainer/models/onerank/test_onerank.py",
    "serving/tools/test_score_log_aggregates.py",
    "trainer/models/test_models.py",
    "serving/tools/test_score_log.py",
    "serving/export/test_signatures.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks, and before xdist reads the order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their fixtures, and sorts: fast files first, as a mistake should be seen early, then the longest.

    A file stays together, its fast tests first: a worker has all of it, and what a module's fixtures made.
    """
    for item in items:
        for name in TIER_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(TIER_OF_FIXTURE[name])
    takes_long = {item: any(item.get_closest_marker(tier) for tier in TIERS) for item in items}
    costly_files = {item.path for item in items if takes_long[item]}
    first_seen = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
    longest = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> tuple[bool, int, int, bool]:
        of_file = longest.get(item.path, len(LONGEST))
        return item.path in costly_files, of_file, first_seen[item.path], takes_long[item]

    items.sort(key=place)


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
        from transform.features.model_inputs import ModelInputs

        return ModelInputs.from_spec(self.spec, self.transform_output.vocabulary_size_by_name)


Shared = Callable[[str, Callable[[Path], Any]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Read-only folders that are made once for all of pytest-xdist's workers: `shared(name, make)`.

    What could not be made is not tried again: all who ask for it fail with the first failure.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def find(name: str, make: Callable[[Path], Any]) -> Path:
        folder, made = root / name, root / f"{name}.made"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait
            if not made.exists():
                folder.mkdir(exist_ok=True)
                made.touch()
                try:
                    make(folder)
                except BaseException as error:
                    made.write_text(f"{type(error).__name__}: {error}")
                    raise
            elif failure := made.read_text():
                pytest.fail(f"`{name}` could not be made: {failure}", pytrace=False)
        return folder

    return find


@pytest.fixture(scope="session")
@costly("slow")
def small_plain(shared: Shared) -> Small:
    """The small problem, where a module has more than one as `small`."""
    return _prepared(shared, "small")


@pytest.fixture(scope="session")
def small(small_plain: Small) -> Small:
    return small_plain


@pytest.fixture(scope="session")
@costly("slow")
def small_aggregates(shared: Shared) -> Small:
    """The small problem with aggregate features of every group."""
    return _prepared(shared, "counting", **small_problem.AGGREGATES)


def _prepared(shared: Shared, name: str, **changes: Any) -> Small:
    from transform.ingest.beam_requests import SPLITS
    from transform.ingest.prepare import prepare

    def prepared_in(folder: Path) -> Any:
        return prepare(load_spec(folder / "small.yaml"), folder / "data", folder)

    def make(folder: Path) -> None:
        small_problem.write_data(folder / "data")
        small_problem.write_spec(folder / "small.yaml", **changes)
        prepared_in(folder)

    folder = shared(name, make)
    prepared = prepared_in(folder)
    raw, transformed = ({split: prepared.files(kind, split) for split in SPLITS} for kind in ("raw", "transformed"))
    return Small(prepared.spec, str(folder / "data"), raw, transformed, prepared.transform_output)


@pytest.fixture(scope="session")
@costly("pipeline")
def schedule(shared: Shared) -> Any:
    """Starts of the pipeline on one output folder, to be read alone."""
    from tests.testing.schedule import Schedule

    return Schedule(shared)


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
def served(small_plain: Small, shared: Shared) -> Served:
    """A model that takes no more than 40 candidates; its warm-up requests are made of requests of the test split."""
    return _served(small_plain, shared, "served")


@pytest.fixture(scope="session")
def served_aggregates(small_aggregates: Small, shared: Shared) -> Served:
    """The same with aggregate features."""
    return _served(small_aggregates, shared, "served_aggregates")


def _served(small: Small, shared: Shared, name: str) -> Served:
    import tensorflow as tf

    from serving.export.exporter import export_model
    from transform.features.transform_graph import TransformGraph

    serving = small.spec.serving.model_copy(update={"max_candidates": 40, "warmup_candidates": (1, 7)})
    spec = small.spec.model_copy(update={"serving": serving})
    model = far_from_start(small, spec)

    def make(folder: Path) -> None:
        records = [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP").take(2)]
        preprocess = TransformGraph(small.transform_output.transform_savedmodel_dir)
        export_model(spec, model, preprocess, str(folder / "1"), records)

    return Served(spec, model, str(shared(name, make) / "1"))
