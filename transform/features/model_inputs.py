"""The columns that a model gets: what transformed features there are, and the embedding tables that they share.

Ids: 0 is padding or missing, values begin at 1. Dense values: 0 is padding, missing, or the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from transform.feature_types.base import Feature
from transform.feature_types.column import Column
from transform.spec.ranking_spec import RankingSpec

FEEDBACK_TABLE_ROWS = 3  # 0 unknown, 1 no, 2 yes
FEEDBACK_DIM = 4


def columns(spec: RankingSpec) -> tuple[Column, ...]:
    """All columns of a spec in the order of the file; sequences follow the candidates."""
    found = [column for group, feature in spec.feature_groups() for column in feature.columns(group)]
    candidate_features = {feature.name: feature for feature in spec.features.candidate}
    for sequence in spec.sequences:
        for name in sequence.features:
            found += candidate_features[name].columns(sequence.name)
        for task in sequence.feedback:
            found.append(Column(sequence.name, task, "id", feedback_table(task), FEEDBACK_DIM))
    return tuple(found)


def feedback_table(task: str) -> str:
    """The embedding table of a task's feedback."""
    return f"feedback.{task}"


def analysed_together(spec: RankingSpec) -> list[list[Feature]]:
    """All features, those in one list that are analysed together, by the methods of the first one's class."""
    together: dict[Hashable, list[Feature]] = {}
    for group, feature in spec.feature_groups():
        together.setdefault(feature.analysis_key(group), []).append(feature)
    return list(together.values())


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
    rows: dict[str, int] = {}
    for features in analysed_together(spec):
        rows.update(features[0].table_rows(features, vocabulary_size))
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
