"""`RankingSpec`: one YAML file describes a ranking problem, and everything else is derived from it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from transform.errors import SpecError
from transform.feature_types.aggregate import AggregateFeature
from transform.feature_types.base import Feature
from transform.section import NAME_PATTERN, Name, Section
from transform.spec import data_sections as sections
from transform.spec.aggregates import Aggregate, aggregate_features
from transform.spec.model_sections import Evaluation, Model, Serving, Training
from transform.spec.references import broken_references
from transform.spec.score_formula import parse_score

_METRICS_EXPECTED = "a metric is expected: auc, gauc, ndcg@5 (or another k), normalized_entropy or calibration"


class _Loader(yaml.SafeLoader):
    """Reads `1e-5` as a number, as JSON and everyone else do, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                problem = f"the key `{key}` stands twice in one section"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class RankingSpec(Section):
    """A ranking problem: data, requests, splits, tasks, features, and how to model and judge it.

    Frozen. Read it with `RankingSpec.load(path)`, which turns every mistake in the file into one `SpecError`.
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
    """Counting features, see [aggregates.md](aggregates.md)."""
    model: Model = Field(Model(), examples=[{"name": "onerank", "d": 32}])
    """The model and its settings."""
    training: Training = Field(Training(), examples=[{"epochs": 8}])
    """How it is trained."""
    evaluation: Evaluation = Field(Evaluation(), examples=[{"slices": [[], ["video_id"]]}])
    """How it is judged."""
    serving: Serving = Field(Serving(), examples=[{"max_candidates": 1000}])
    """What it takes and gives where it is served, see [serving.md](serving.md)."""

    # === Reading and writing ===

    @classmethod
    def load(cls, path: str | Path) -> RankingSpec:
        """Reads and checks a spec file.

        Args:
            path: str or Path. A YAML file.

        Returns:
            The spec.

        Raises:
            SpecError: when the file can't be read, is no YAML, or breaks the data contract.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: a readable YAML file in UTF-8 is expected. Received: {error}.") from error
        return cls.parse(text, origin=str(path))

    @classmethod
    def parse(cls, text: str, origin: str = "spec") -> RankingSpec:
        """Reads and checks a spec given as YAML (or JSON) text; `origin` names it in error messages."""
        try:
            content = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            # the first line says what, the rest where; the name of the text is PyYAML's own
            told = " ".join(str(error).replace(' in "<unicode string>",', " in").split())
            raise SpecError(f"{origin}: YAML is expected. Received: {told}. Correct the line.") from error
        if not isinstance(content, dict):
            raise SpecError(f"{origin}: a mapping with `name`, `data`, `tasks` ... is expected. Received: {content!r}.")
        try:
            spec = cls.model_validate(content)
        except ValidationError as error:
            raise SpecError("\n".join(_describe(origin, problem) for problem in _causes(error.errors()))) from error
        problems = [f"{origin}: {problem}" for problem in broken_references(spec)]
        if problems:
            raise SpecError("\n".join(problems))
        return spec.with_as_of(spec.split.as_of)

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text, and `parse` reads it back."""
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
        """All features with the name of their group; in each, counting features follow those of the file."""
        derived = [(group, feature) for _, group, feature in aggregate_features(self)]
        for group in ("user", "context", "candidate"):
            yield from ((group, feature) for feature in getattr(self.features, group))
            yield from (pair for pair in derived if pair[0] == group)

    def candidate_features(self) -> list[Feature]:
        """The features of candidates, in the order of `feature_groups`."""
        return [feature for group, feature in self.feature_groups() if group == "candidate"]

    def counting_features(self) -> list[AggregateFeature]:
        """The features that follow from the section `aggregates`, in the order of the file."""
        return [feature for _, _, feature in aggregate_features(self)]


def _causes(problems: list[Any]) -> list[Any]:
    """The problems without those that only follow from others: a list whose one element is wrong is no short list."""
    places = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(place != problem["loc"] and place[: len(problem["loc"])] == problem["loc"] for place in places)
    ]


_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text"}


def _describe(origin: str, problem: Any) -> str:
    """One pydantic problem as path in the file, what was expected, what was received and the cure."""
    location = list(problem["loc"])
    path = _path(location)
    kind, received = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        cure = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(known)}."
        return f"{origin}: {path}: a known key is expected. Received: `{location[-1]}`. {cure}"
    if kind == "missing":
        cure = "Give the pair [first, last]." if isinstance(location[-1], int) else f"Add the key `{location[-1]}`."
        return f"{origin}: {path}: a value is expected. Received: nothing. {cure}"
    text = problem["msg"].removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        is_name = problem["ctx"]["pattern"] == NAME_PATTERN
        text = "a name in lower-case letters, digits and _ is expected, as `my_name`" if is_name else _METRICS_EXPECTED
    elif kind == "tuple_type":
        text = "a list is expected, as [a, b]"
    elif (what := kind.partition("_")[0]) in _TYPES and kind.endswith(
        ("_type", "_parsing", "_parsing_size", "_from_float")
    ):
        text = f"{_TYPES[what]} is expected"
    elif kind == "literal_error":
        near = difflib.get_close_matches(str(received), re.findall(r"'([^']*)'", problem["ctx"]["expected"]), 1)
        cure = f" Did you mean `{near[0]}`?" if near else ""
        return f"{origin}: {path}: {problem['ctx']['expected']} is expected. Received: {_short(received)}.{cure}"
    return f"{origin}: {path}: {text}. Received: {_short(received)}."


def _path(location: list[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "(the whole file)"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def _known_keys(location: list[str | int]) -> list[str]:
    """The keys of the section at a place in the file."""
    annotation: type[Section] | None = RankingSpec
    for part in location:
        if isinstance(part, int):
            continue
        fields = annotation.known_fields() if annotation else {}
        annotation = _section_class(fields[part].annotation) if part in fields else annotation
    return sorted(annotation.known_fields()) if annotation else []


def _section_class(annotation: Any) -> type[Section] | None:
    """The section class inside an annotation such as `tuple[Task, ...]` or `Past | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = [_section_class(part) for part in getattr(annotation, "__args__", ())]
    return next((part for part in inner if part is not None), None)
