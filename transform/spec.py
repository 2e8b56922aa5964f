"""`RankingSpec`: one YAML file describes a ranking problem, and everything else is derived from it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from transform import spec_sections as sections
from transform.errors import SpecError
from transform.score_formula import parse_score
from transform.spec_aggregates import (
    Aggregate,
    AggregateFeature,
    aggregate_features,
    aggregate_problems,
    carried_columns,
)

RESERVED_NAMES = frozenset(
    {"candidate_count", "candidate_mask", "mask", "request_id", "request_time", "score", "examples", "request_group"}
)
_METRICS_EXPECTED = "a metric is expected: auc, gauc, ndcg@5 (or another k), normalized_entropy or calibration"
RESERVED_PREFIXES = ("label_", "mask_", "cache_")
GROUPS = frozenset({"user", "context", "candidate"})


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


class RankingSpec(sections.Section):
    """A ranking problem: data, requests, splits, tasks, features, and how to model and judge it.

    Frozen. Read it with `RankingSpec.load(path)`, which turns every mistake in the file into one `SpecError`.
    """

    name: sections.Name
    data: sections.Data
    request: sections.Request
    split: sections.Split
    tasks: tuple[sections.Task, ...] = sections.Field(min_length=1)
    score: str | None = None
    features: sections.Features
    sequences: tuple[sections.Sequence, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    model: sections.Model = sections.Model()
    training: sections.Training = sections.Training()
    evaluation: sections.Evaluation = sections.Evaluation()

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
            raise SpecError(f"{origin}: YAML is expected. Received: {' '.join(str(error).split())}.") from error
        if not isinstance(content, dict):
            raise SpecError(f"{origin}: a mapping with `name`, `data`, `tasks` ... is expected. Received: {content!r}.")
        try:
            spec = cls.model_validate(content)
        except ValidationError as error:
            raise SpecError("\n".join(_describe(origin, problem) for problem in _causes(error.errors()))) from error
        problems = [f"{origin}: {problem}" for problem in _broken_references(spec)]
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

        A change of the model, of the training or of the evaluation must not re-run what comes before the Trainer.
        """
        defaults = {"model": sections.Model(), "training": sections.Training(), "evaluation": sections.Evaluation()}
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

    def declared_features(self) -> Iterator[tuple[str, sections.Feature]]:
        """The features of the section `features`, with the name of their group: what columns hold."""
        for group in ("user", "context", "candidate"):
            for feature in getattr(self.features, group):
                yield group, feature

    def feature_groups(self) -> Iterator[tuple[str, sections.Feature]]:
        """All features with the name of their group; in each, counting features follow those of the file."""
        derived = [(group, feature) for _, group, feature in aggregate_features(self)]
        for group in ("user", "context", "candidate"):
            yield from ((group, feature) for feature in getattr(self.features, group))
            yield from (pair for pair in derived if pair[0] == group)

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
        is_name = problem["ctx"]["pattern"] == sections.NAME_PATTERN
        text = "a name in lower-case letters, digits and _ is expected, as `my_name`" if is_name else _METRICS_EXPECTED
    elif kind == "tuple_type":
        text = "a list is expected, as [a, b]"
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
    annotation: Any = RankingSpec
    for part in location:
        if isinstance(part, int):
            continue
        fields = getattr(annotation, "model_fields", {})
        annotation = _section_class(fields[part].annotation) if part in fields else annotation
    return sorted(getattr(annotation, "model_fields", {}))


def _section_class(annotation: Any) -> Any:
    """The section class inside an annotation such as `tuple[Task, ...]` or `Past | None`."""
    if hasattr(annotation, "model_fields"):
        return annotation
    inner = [_section_class(part) for part in getattr(annotation, "__args__", ())]
    return next((part for part in inner if part is not None), None)


def _broken_references(spec: RankingSpec) -> Iterator[str]:
    """What refers from one section to another and finds nothing, each with its cure."""
    yield from _name_problems(spec)
    yield from _task_problems(spec)
    yield from _feature_problems(spec)
    yield from _sequence_problems(spec)
    yield from aggregate_problems(spec)
    yield from _evaluation_problems(spec)


def _unknown(path: str, what: str, received: str, known: Any) -> str:
    return f"{path}: the name of {what} is expected. Received: `{received}`. Known: {', '.join(known) or 'none'}."


def _name_problems(spec: RankingSpec) -> Iterator[str]:
    places: dict[str, str] = {}
    named = [(f"tasks[{i}]", task.name) for i, task in enumerate(spec.tasks)]
    for group in ("user", "context", "candidate"):
        named += [(f"features.{group}[{i}]", f.name) for i, f in enumerate(getattr(spec.features, group))]
    named += [(f"sequences[{i}]", sequence.name) for i, sequence in enumerate(spec.sequences)]
    named += [("aggregates", column) for column in carried_columns(spec)]
    derived = []
    for i, sequence in enumerate(spec.sequences):
        derived += [(f"sequences[{i}]", f"{sequence.name}_{part}") for part in (*sequence.features, *sequence.feedback)]
        derived += [(f"sequences[{i}]", f"{sequence.name}_{part}") for part in ("mask", "length")]
    derived += [(f"feature `{f.name}`", f"{f.name}_length") for _, f in spec.declared_features() if "set" in f.type]
    for _, feature in spec.declared_features():
        if feature.type == "time":
            in_sequences = [f"{s.name}_" for s in spec.sequences if feature.name in s.features]
            names = [prefix + name for prefix in ["", *in_sequences] for name in feature.column_names]
            derived += [(f"feature `{feature.name}`", name) for name in names]
    for i, _, counting in aggregate_features(spec):
        derived += [(f"aggregates[{i}]", name) for name in counting.column_names]
    told: set[tuple[str, str]] = set()
    for place, name in named + derived:
        taken = name in GROUPS and place.startswith("sequences")
        if taken or name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES):
            yield f"{place}.name: a name that the package does not use is expected. Received: `{name}`. Rename it."
        elif name in places and (place, places[name]) not in told:
            told.add((place, places[name]))  # blocks that overlap do so in many names
            yield f"{place}.name: names unique over the file are expected. Received: `{name}`, also {places[name]}."
        places.setdefault(name, place)


def _task_problems(spec: RankingSpec) -> Iterator[str]:
    parents = {task.name: task.observed_when for task in spec.tasks}
    for i, task in enumerate(spec.tasks):
        seen, parent = {task.name}, task.observed_when
        while parent is not None:
            if parent not in parents:
                yield _unknown(f"tasks[{i}].observed_when", "a task", parent, parents)
                break
            if parent in seen:
                yield f"tasks[{i}].observed_when: tasks without a cycle are expected. Received: `{parent}` again."
                break
            seen.add(parent)
            parent = parents[parent]
    try:
        powers = spec.score_powers
    except ValueError as error:
        yield f"score: {error}."
        return
    for name in powers:
        if name not in parents:
            yield _unknown("score", "a task", name, parents)


def _feature_problems(spec: RankingSpec) -> Iterator[str]:
    outcomes = {task.label: f"the label of task `{task.name}`" for task in spec.tasks}
    outcomes.update({column: "listed in data.outcomes" for column in spec.data.outcomes})
    settings: dict[tuple[str, str], tuple[str, Any]] = {}
    for group, feature in spec.declared_features():
        place = f"features.{group} `{feature.name}`"
        if feature.source_column in outcomes:
            yield (
                f"{place}: an input known before the impression is expected. Received: column "
                f"`{feature.source_column}`, {outcomes[feature.source_column]}. Remove the feature: it would leak."
            )
        if feature.type == "categorical_set" and group != "candidate":
            yield f"{place}: type `categorical` or `numeric` is expected here. Received: `categorical_set`."
        if feature.pick and group == "candidate":
            yield f"{place}: `pick` belongs to user and context features. Remove it."
        if feature.type in ("categorical", "categorical_set"):
            table = vocabulary_name(feature)
            asked = {"dim": feature.dim}
            if feature.vocabulary:
                asked.update({key: getattr(feature.vocabulary, key) for key in feature.vocabulary.model_fields_set})
            if asked.get("hash_buckets") and asked.keys() & {"top_k", "min_frequency", "oov"}:
                yield (
                    f"{place}.vocabulary: either `hash_buckets`, or a learned vocabulary with `top_k`, `min_frequency` "
                    "and `oov`, is expected. Received: both. Remove one."
                )
            for key in [key for key in ("dim", "top_k", "min_frequency", "oov", "hash_buckets") if key in asked]:
                first, value = settings.setdefault((table, key), (feature.name, asked[key]))
                if value != asked[key]:
                    yield (
                        f"{place}: features that share vocabulary `{table}` need one {key}. Received: {asked[key]}, "
                        f"but {value} in `{first}`. Make them equal."
                    )


def _sequence_problems(spec: RankingSpec) -> Iterator[str]:
    candidates = {feature.name: feature for feature in spec.features.candidate}
    tasks, sequences = spec.task_names, {sequence.name: sequence for sequence in spec.sequences}
    if sequences and spec.user_key is None:
        yield "sequences: a user key is expected. Received: none. Add `data.tables.user: {key: <the user's column>}`."
    for i, sequence in enumerate(spec.sequences):
        for name in sequence.features:
            if name not in candidates:
                yield _unknown(f"sequences[{i}].features", "a candidate feature", name, candidates)
            elif candidates[name].type == "categorical_set":
                yield f"sequences[{i}].features: single-valued features are expected. Received: `{name}`, a set."
        for key, value in [("feedback", name) for name in sequence.feedback] + [("where", sequence.where)]:
            if value is not None and value not in tasks:
                yield _unknown(f"sequences[{i}].{key}", "a task", value, tasks)
    past = spec.data.past
    if past is None:
        return
    if spec.data.tables.user and spec.data.tables.user.key != past.key:
        yield f"data.past.key: the user table's key `{spec.data.tables.user.key}` is expected. Received: `{past.key}`."
    if past.feedback and spec.item_feature is None:
        yield "data.past.feedback: a candidate feature on the item table's key is expected. Received: none. Add it."
    for name, columns in past.sequences.items():
        if name not in sequences:
            yield _unknown(f"data.past.sequences.{name}", "a sequence", name, sequences)
            continue
        for feature in columns:
            if feature not in sequences[name].features:
                known = sequences[name].features
                yield _unknown(f"data.past.sequences.{name}", "a feature of the sequence", feature, known)
    for task in past.feedback:
        if task not in tasks:
            yield _unknown("data.past.feedback", "a task", task, tasks)


def _evaluation_problems(spec: RankingSpec) -> Iterator[str]:
    single = [f.name for _, f in spec.feature_groups() if f.type in ("categorical", "numeric")]
    for i, names in enumerate(spec.evaluation.slices):
        for name in names:
            if name not in single:
                yield _unknown(f"evaluation.slices[{i}]", "a categorical or numeric feature", name, single)
    for name in spec.evaluation.gates:
        if name not in (*spec.task_names, "default"):
            yield _unknown(f"evaluation.gates.{name}", "a task (or `default`)", name, spec.task_names)
    stopping = spec.training.early_stopping
    if stopping and stopping.task not in spec.task_names:
        yield _unknown("training.early_stopping.task", "a task", stopping.task, spec.task_names)


def vocabulary_name(feature: sections.Feature) -> str:
    """The name of a categorical feature's vocabulary: its own name unless it shares one."""
    return (feature.vocabulary and feature.vocabulary.name) or feature.name
