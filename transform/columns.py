"""The columns that a model gets: what transformed features there are, and the embedding tables that they share.

Ids: 0 is padding or missing, values begin at 1. Dense values: 0 is padding, missing, or the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from transform.spec import RankingSpec, vocabulary_name
from transform.spec_sections import Feature

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
    by_name = {column.name: column for column in found if column.group == "candidate"}
    for sequence in spec.sequences:
        for name in sequence.features:
            column = by_name[name]
            found.append(Column(sequence.name, name, column.kind, column.table, column.dim))
        for task in sequence.feedback:
            found.append(Column(sequence.name, task, "id", feedback_table(task), FEEDBACK_DIM))
    return tuple(found)


def _columns(group: str, feature: Feature) -> Iterator[Column]:
    if feature.type == "numeric":
        for name, transform in feature.transformed.items():
            if transform == "quantiles":
                yield Column(group, name, "id", bucket_table(feature), feature.dim)
            else:
                yield Column(group, name, "dense", None, 1)
    else:
        kind = "ids" if feature.type == "categorical_set" else "id"
        yield Column(group, feature.name, kind, vocabulary_name(feature), feature.dim)


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
        if feature.type != "numeric":
            shared.setdefault(vocabulary_name(feature), []).append(feature)
    return shared


def oov_buckets(features: list[Feature]) -> int:
    """The number of ids for values outside a vocabulary: what its features ask for, 1 unless they say."""
    asked = [f.vocabulary.oov for f in features if f.vocabulary and "oov" in f.vocabulary.model_fields_set]
    return asked[0] if asked else 1


def table_rows(spec: RankingSpec, vocabulary_size: Callable[[str], int]) -> dict[str, int]:
    """The number of rows of each embedding table.

    Args:
        spec: RankingSpec.
        vocabulary_size: callable. The number of values in a vocabulary.

    Returns:
        Rows by table, row 0 for padding and missing included.
    """
    rows = {name: 1 + vocabulary_size(name) + oov_buckets(shared) for name, shared in vocabularies(spec).items()}
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
class ModelInputs:
    """All that a model must know about its inputs and outputs. Plain values, so that it travels in a Keras config.

    Attributes:
        columns: tuple of Column. The transformed features.
        rows: dict. The number of rows of each embedding table.
        sequences: tuple of EventSequence. In the order of the file.
        tasks: tuple of str. The names of the K tasks in the cascade's order.
    """

    columns: tuple[Column, ...]
    rows: dict[str, int]
    sequences: tuple[EventSequence, ...]
    tasks: tuple[str, ...]

    @classmethod
    def from_spec(cls, spec: RankingSpec, vocabulary_size: Callable[[str], int]) -> ModelInputs:
        """The inputs of a spec, given the number of values in each vocabulary."""
        sequences = tuple(EventSequence(s.name, s.role, s.length) for s in spec.sequences)
        return cls(columns(spec), table_rows(spec, vocabulary_size), sequences, spec.task_names)

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
        return cls(found, dict(config["rows"]), sequences, tuple(config["tasks"]))
