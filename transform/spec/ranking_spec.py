"""`RankingSpec`: one YAML file describes a ranking problem, and everything else is derived from it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import Field

from transform.errors import SpecError
from transform.feature_types.aggregate import AggregateFeature
from transform.feature_types.base import Feature
from transform.section import Name, Section
from transform.spec import data_sections as sections
from transform.spec.aggregates import Aggregate
from transform.spec.model_sections import Evaluation, Model, Serving, Training
from transform.spec.score_formula import parse_score


class RankingSpec(Section):
    """A ranking problem: data, requests, splits, tasks, features, and how to model and judge it.

    Frozen. Read it with `loading.load_spec(path)`, which turns every mistake in the file into one `SpecError`.
    """

    name: Name = Field(examples=["kuairand"])
    """The problem's name: that of the pipeline, and of the folder that models are pushed to."""
    data: sections.Data = Field(
        examples=[
            {
                "impressions": {"files": ["log*.csv.gz"]},
                "tables": {"user": {"key": "user_id"}, "item": {"files": ["videos.csv"], "key": "video_id"}},
            }
        ]
    )
    """Where the log and its side tables lie."""
    request: sections.Request = Field(examples=[{"group_by": ["user_id", "date"], "time": "time_ms"}])
    """What makes a request."""
    split: sections.Split = Field(
        examples=[{"by": "date", "date_format": "YYYYMMDD", "train": [-10, -3], "eval": [-2, -2], "test": [-1, 0]}]
    )
    """What is learned from, watched and judged by."""
    tasks: tuple[sections.Task, ...] = Field(
        min_length=1, examples=[[{"name": "click", "label": "is_click"}, {"name": "like", "label": "is_like"}]]
    )
    """What is predicted, in the order in which one task leads to the next."""
    score: str | None = Field(None, examples=["click^0.2 * like"])
    """The fused score that is served beside the tasks: a product of powers of their probabilities. A task that is not
    in it has the power 0. All tasks with power 1 by default."""
    features: sections.Features = Field(
        examples=[
            {
                "user": [{"name": "user_id", "type": "categorical"}],
                "candidate": [
                    {"name": "video_id", "type": "categorical"},
                    {"name": "duration_ms", "type": "numeric"},
                    {"name": "tag", "type": "categorical_set"},
                    {"name": "uploaded_at", "type": "time"},
                ],
            }
        ]
    )
    """The inputs."""
    sequences: tuple[sections.Sequence, ...] = Field(
        (),
        examples=[
            [
                {"name": "watched", "features": ["video_id"], "feedback": ["click", "like"]},
                {"name": "liked", "role": "anchor", "where": "like", "features": ["video_id"]},
            ]
        ],
    )
    """The user's earlier events."""
    aggregates: tuple[Aggregate, ...] = Field(
        (), examples=[[{"keys": [["video_id"]], "tasks": ["click"], "windows": ["7d"]}]]
    )
    """Aggregate features, see [aggregates.md](aggregates.md)."""
    model: Model = Field(Model(), examples=[{"name": "onerank", "d": 32}])
    """The model and its settings."""
    training: Training = Field(Training(), examples=[{"epochs": 8}])
    """How it is trained."""
    evaluation: Evaluation = Field(Evaluation(), examples=[{"slices": [[], ["video_id"]]}])
    """How it is judged."""
    serving: Serving = Field(Serving(), examples=[{"max_candidates": 1000}])
    """What it takes and gives where it is served, see [serving.md](serving.md)."""

    # === Writing and changing ===

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text, and `loading.parse_spec` reads it back."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        model = self.model.model_dump(mode="json", exclude_defaults=True)
        content["model"] = {"name": self.model.name, **model}
        return json.dumps(content, sort_keys=True)

    def with_seed(self, seed: int | None) -> RankingSpec:
        """The same spec with another training seed; None changes nothing."""
        if seed is None:
            return self
        if seed < 0:
            raise SpecError(f"seed: a whole number from 0 on is expected. Received: {seed}.")
        return self.model_copy(update={"training": self.training.model_copy(update={"seed": seed})})

    def with_as_of(self, as_of: str | None) -> RankingSpec:
        """The same spec with literal split bounds, for an as-of date (YYYY-MM-DD); None changes nothing."""
        if as_of is None:
            return self
        if self.split.date_format is None:
            raise SpecError(
                f"as_of: a spec whose split bounds are days relative to a date is expected. Received: `{as_of}`, but "
                "the bounds are literals. Leave the date out, or set `split.date_format`."
            )
        try:
            return self.model_copy(update={"split": self.split.resolved(as_of)})
        except ValueError as error:
            raise SpecError(f"as_of: {error}. Received: `{as_of}`.") from error

    def data_part(self) -> RankingSpec:
        """The part that request examples and their preprocessing depend on, all else at its default.

        A change of the model, of its training, evaluation or serving must not re-run what comes before the Trainer.
        """
        defaults = {"model": Model(), "training": Training(), "evaluation": Evaluation(), "serving": Serving()}
        tasks = tuple(task.model_copy(update={"weight": 1.0}) for task in self.tasks)
        return self.model_copy(update={**defaults, "tasks": tasks, "score": None})

    # === Derived ===

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names in the cascade's order."""
        return tuple(task.name for task in self.tasks)

    @property
    def score_powers(self) -> dict[str, float]:
        """The power of each task in the fused score; without a formula, every task's is 1."""
        return parse_score(self.score) if self.score else dict.fromkeys(self.task_names, 1.0)

    @property
    def user_key(self) -> str | None:
        """The column that names the user, if the spec says so."""
        table = self.data.tables.user
        return table.key if table else (self.data.past.key if self.data.past else None)

    @property
    def item_key(self) -> str | None:
        """The column that names the item, if the spec says so."""
        return self.data.tables.item.key if self.data.tables.item else None

    @property
    def item_feature(self) -> str | None:
        """The candidate feature that is the item itself, if there is one."""
        names = [f.name for f in self.features.candidate if f.source_column == self.item_key]
        return names[0] if names else None

    def declared_features(self) -> Iterator[tuple[str, Feature]]:
        """The features of the section `features`, with the name of their group: what columns hold."""
        for group in ("user", "context", "candidate"):
            for feature in getattr(self.features, group):
                yield group, feature

    def feature_groups(self) -> Iterator[tuple[str, Feature]]:
        """All features with the name of their group; in each, aggregate features follow those of the file."""
        derived = [(group, feature) for _, group, feature in self.aggregate_features_by_block()]
        for group in ("user", "context", "candidate"):
            yield from ((group, feature) for feature in getattr(self.features, group))
            yield from (pair for pair in derived if pair[0] == group)

    def candidate_features(self) -> list[Feature]:
        """The features of candidates, in the order of `feature_groups`."""
        return [feature for group, feature in self.feature_groups() if group == "candidate"]

    def aggregate_features(self) -> list[AggregateFeature]:
        """The features that follow from the section `aggregates`, in the order of the file."""
        return [feature for _, _, feature in self.aggregate_features_by_block()]

    def aggregate_features_by_block(self) -> Iterator[tuple[int, str, AggregateFeature]]:
        """The aggregate features in the order of the file: the block's index, the group, the feature.

        A key with a part of the candidate is the candidate's, else one with a part of the context is the context's,
        else it is the user's.
        """
        for index, block in enumerate(self.aggregates):
            for key in block.keys:
                groups = {self.key_part_group(part) for part in key}
                group = next((name for name in ("candidate", "context") if name in groups), "user")
                yield from ((index, group, feature) for feature in block.features(key))

    def key_part_group(self, part: str) -> str | None:
        """The group of a part of a key: that of the feature, else of the key column; None for an unknown part."""
        groups = {feature.name: group for group, feature in self.declared_features()}
        columns = {self.item_key: "candidate", self.user_key: "user"}
        return groups.get(part) or columns.get(part)

    def carried_columns(self) -> dict[str, str]:
        """The key columns that are parts of keys and no features, with their group."""
        names = {feature.name for _, feature in self.declared_features()}
        keys = [key for block in self.aggregates for key in block.keys]
        parts = dict.fromkeys(part for key in keys for part in key if part not in names)
        return {part: group for part in parts if (group := self.key_part_group(part))}
