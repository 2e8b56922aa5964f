"""The columns that a model gets: what transformed features there are, and the embedding tables that they share.

Ids: 0 is padding or missing, values begin at 1. Dense values: 0 is padding, missing, or the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from transform.errors import DataError
from transform.spec.data_sections import Feature
from transform.spec.ranking_spec import RankingSpec

LARGEST_VOCABULARY = 20_000_000  # values; at 16 floats each, and two more an optimizer keeps, 4 GB
FEEDBACK_TABLE_ROWS = 3  # 0 unknown, 1 no, 2 yes
FEEDBACK_DIM = 4


@dataclass(frozen=True)
class Column:
    """One transformed feature.

    Attributes:
        group: str. `user`, `context`, `candidate`, or a sequence's name.
        name: str. Its name within the group.
        kind: str. `id`, `ids` (a set of ids) or `dense`.
        table: str or None. The embedding table of ids.
        dim: int. The width of the embedding; 1 for dense values.
    """

    group: str
    name: str
    kind: str
    table: str | None
    dim: int


def columns(spec: RankingSpec) -> tuple[Column, ...]:
    """All columns of a spec in the order of the file; sequences follow the candidates."""
    found = [column for group, feature in spec.feature_groups() for column in _columns(group, feature)]
    candidate_features = {feature.name: feature for feature in spec.features.candidate}
    for sequence in spec.sequences:
        for name in sequence.features:
            found += _columns(sequence.name, candidate_features[name])
        for task in sequence.feedback:
            found.append(Column(sequence.name, task, "id", feedback_table(task), FEEDBACK_DIM))
    return tuple(found)


def _columns(group: str, feature: Feature) -> list[Column]:
    if feature.type == "time":
        return [Column(group, name, "dense", None, 1) for name in feature.column_names]
    if feature.type == "numeric":
        return [
            Column(group, name, "id", bucket_table(feature), feature.dim)
            if transform == "quantiles"
            else Column(group, name, "dense", None, 1)
            for name, transform in zip(feature.column_names, feature.transforms, strict=True)
        ]
    kind = "ids" if feature.type == "categorical_set" else "id"
    return [Column(group, feature.name, kind, feature.vocabulary_name, feature.dim)]


def bucket_table(feature: Feature) -> str:
    """The embedding table of a numeric feature's quantile buckets."""
    return f"{feature.name}.bucket"  # the dot keeps it apart from all vocabularies


def feedback_table(task: str) -> str:
    """The embedding table of a task's feedback."""
    return f"feedback.{task}"


def vocabularies(spec: RankingSpec) -> dict[str, list[Feature]]:
    """The categorical features by the vocabulary that they share."""
    shared: dict[str, list[Feature]] = {}
    for _, feature in spec.feature_groups():
        if feature.type in ("categorical", "categorical_set"):
            shared.setdefault(feature.vocabulary_name, []).append(feature)
    return shared


def hash_buckets(features: list[Feature]) -> int | None:
    """The number of ids of a vocabulary that is not learned, or None."""
    return next((f.vocabulary.hash_buckets for f in features if f.vocabulary and f.vocabulary.hash_buckets), None)


def oov_buckets(features: list[Feature]) -> int:
    """The number of ids for values outside a vocabulary: what its features ask for, 1 unless they say."""
    asked = [f.vocabulary.oov for f in features if f.vocabulary and "oov" in f.vocabulary.model_fields_set]
    return asked[0] if asked else 1


def table_rows(spec: RankingSpec, vocabulary_size: Callable[[str], int]) -> dict[str, int]:
    """The number of rows of each embedding table.

    Args:
        spec: RankingSpec.
        vocabulary_size: callable. The number of values in a learned vocabulary.

    Returns:
        Rows by table, row 0 for padding and missing included.

    Raises:
        DataError: when a learned vocabulary is too large to be trained.
    """
    for name, shared in vocabularies(spec).items():
        if not hash_buckets(shared) and vocabulary_size(name) > LARGEST_VOCABULARY:
            raise DataError(
                f"features `{'`, `'.join(feature.name for feature in shared)}`: a vocabulary of at most "
                f"{LARGEST_VOCABULARY:,} values is expected. Received: {vocabulary_size(name):,}. Set "
                "`vocabulary: {top_k: ...}` or `{min_frequency: ...}`, or hash the ids: `{hash_buckets: ...}`."
            )
    rows = {
        name: 1 + (hash_buckets(shared) or vocabulary_size(name) + oov_buckets(shared))
        for name, shared in vocabularies(spec).items()
    }
    for _, feature in spec.feature_groups():
        if feature.type == "numeric" and "quantiles" in feature.transforms:
            rows[bucket_table(feature)] = 1 + feature.buckets
    for sequence in spec.sequences:
        rows.update({feedback_table(task): FEEDBACK_TABLE_ROWS for task in sequence.feedback})
    return rows


@dataclass(frozen=True)
class EventSequence:
    """One typed list of a user's earlier events; its columns are the group of its name.

    Attributes:
        name: str.
        role: str. `history`, or `anchor` for reference sequences.
        length: int. The most events that a batch holds.
    """

    name: str
    role: str
    length: int


@dataclass(frozen=True)
class Task:
    """One thing to predict, as models, heads and losses know it.

    Attributes:
        name: str.
        weight: float. The weight of the task's loss. Defaults to 1.0.
        observed_when: str, optional. The task that has to be positive for the label of this one to be observed: a
            purchase after a click. Defaults to None: every impression has a label.
    """

    name: str
    weight: float = 1.0
    observed_when: str | None = None

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ModelInputs:
    """All that a model must know about its inputs and outputs. Plain values, so that it travels in a Keras config.

    Attributes:
        columns: tuple of Column. The transformed features.
        rows: dict. The number of rows of each embedding table.
        sequences: tuple of EventSequence. In the order of the file.
        tasks: tuple of Task. The K tasks in the cascade's order.
    """

    columns: tuple[Column, ...]
    rows: dict[str, int]
    sequences: tuple[EventSequence, ...]
    tasks: tuple[Task, ...]

    @classmethod
    def from_spec(cls, spec: RankingSpec, vocabulary_size: Callable[[str], int]) -> ModelInputs:
        """The inputs of a spec, given the number of values in each vocabulary."""
        sequences = tuple(EventSequence(s.name, s.role, s.length) for s in spec.sequences)
        tasks = tuple(Task(task.name, task.weight, task.observed_when) for task in spec.tasks)
        return cls(columns(spec), table_rows(spec, vocabulary_size), sequences, tasks)

    def for_tasks(self, names: Iterable[str]) -> ModelInputs:
        """The same inputs for some of the tasks, in the order of the names."""
        tasks = {task.name: task for task in self.tasks}
        return replace(self, tasks=tuple(tasks[name] for name in names))

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(task.name for task in self.tasks)

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The names of the sequences."""
        return tuple(sequence.name for sequence in self.sequences)

    def group(self, name: str) -> tuple[Column, ...]:
        """The columns of a group."""
        return tuple(column for column in self.columns if column.group == name)

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModelInputs:
        """The opposite of `to_config`."""
        found = tuple(Column(**column) for column in config["columns"])
        sequences = tuple(EventSequence(**sequence) for sequence in config["sequences"])
        tasks = tuple(Task(**task) for task in config["tasks"])
        return cls(found, dict(config["rows"]), sequences, tasks)
