"""What refers from one section of the spec to another and finds nothing, each with its cure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transform.errors import SpecError
from transform.feature_types.base import feature_types, one_of
from transform.spec.metric_table import direction_expected, find_metric
from transform.spec.ranking_spec import RankingSpec

RESERVED_NAMES = frozenset(
    {"candidate_count", "candidate_mask", "mask", "request_id", "request_time", "score", "examples", "request_group"}
)
RESERVED_PREFIXES = ("label_", "weight_", "cache_")
RESERVED_FOR_CONTEXT = ("state_", "summary_")  # what stands beside the context's features in a served call
GROUPS = frozenset({"user", "context", "candidate"})


def broken_references(spec: RankingSpec) -> Iterator[str]:
    """Every problem between sections as one line: where, what is expected, what was received and the cure."""
    yield from _name_problems(spec)
    yield from _task_problems(spec)
    yield from _feature_problems(spec)
    yield from _sequence_problems(spec)
    yield from _aggregate_problems(spec)
    yield from _evaluation_problems(spec)
    yield from _serving_problems(spec)


def broken_imports(spec: RankingSpec) -> Iterator[str]:
    """Every problem with what the spec names by an import path; imports it."""
    named = {f"evaluation.metrics[{i}]": name for i, name in enumerate(spec.evaluation.metrics)}
    named.update({f"evaluation.gates.{task}.metric": gate.metric for task, gate in spec.evaluation.gates.items()})
    stopping = spec.training.early_stopping
    if stopping:
        named["training.early_stopping.metric"] = stopping.metric
    broken = set()
    for place, name in named.items():
        try:
            metric = find_metric(name, place)
        except SpecError as error:
            broken.add(name)
            yield str(error)
            continue
        if place.startswith("training") and not metric.has_direction:
            yield f"{place}: {direction_expected()}. Received: `{name}`."
    for task, gate in spec.evaluation.gates.items():
        problem = None if gate.metric in broken else gate.find_problem()
        if problem:
            place = f"evaluation.gates.{task}"
            yield f"{place}: {problem}. Received: `{gate.metric}`."


def _unknown(path: str, what: str, received: str, known: Any) -> str:
    return f"{path}: the name of {what} is expected. Received: `{received}`. Known: {', '.join(known) or 'none'}."


def _name_problems(spec: RankingSpec) -> Iterator[str]:
    places: dict[str, str] = {}
    named = [(f"tasks[{i}]", task.name) for i, task in enumerate(spec.tasks)]
    for group in ("user", "context", "candidate"):
        named += [(f"features.{group}[{i}]", f.name) for i, f in enumerate(getattr(spec.features, group))]
    named += [(f"sequences[{i}]", sequence.name) for i, sequence in enumerate(spec.sequences)]
    named += [("aggregates", column) for column in spec.carried_columns()]
    derived = []
    for i, sequence in enumerate(spec.sequences):
        derived += [(f"sequences[{i}]", f"{sequence.name}_{part}") for part in (*sequence.features, *sequence.feedback)]
        derived += [(f"sequences[{i}]", f"{sequence.name}_{part}") for part in ("mask", "length")]
    for _, feature in spec.declared_features():
        in_sequences = [f"{s.name}_" for s in spec.sequences if feature.name in s.features]
        names = [prefix + name for prefix in ["", *in_sequences] for name in feature.derived_names()]
        derived += [(f"feature `{feature.name}`", name) for name in names]
    for i, _, feature in spec.aggregate_features_by_block():
        derived += [(f"aggregates[{i}]", name) for name in (feature.name, *feature.derived_names())]
    for i, feature in enumerate(spec.features.context):
        if feature.name.startswith(RESERVED_FOR_CONTEXT):
            yield (
                f"features.context[{i}].name: a name that the package does not use is expected. "
                f"Received: `{feature.name}`. Rename it."
            )
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
    if spec.request.weight:
        outcomes[spec.request.weight] = "the weight of impressions"
    settings: dict[tuple[str, str], tuple[str, Any]] = {}
    for group, feature in spec.declared_features():
        place = f"features.{group} `{feature.name}`"
        if feature.source_column in outcomes:
            yield (
                f"{place}: an input known before the impression is expected. Received: column "
                f"`{feature.source_column}`, {outcomes[feature.source_column]}. Remove the feature: it would leak."
            )
        if not feature.single_valued and group != "candidate":
            known = [f"`{name}`" for name, cls in feature_types().items() if cls.single_valued]
            yield f"{place}: type {one_of(known)} is expected here. Received: `{feature.type}`."
        if feature.pick and group == "candidate":
            yield f"{place}: `pick` belongs to user and context features. Remove it."
        for (table, key), value in feature.shared_settings().items():
            first, expected = settings.setdefault((table, key), (feature.name, value))
            if value != expected:
                yield (
                    f"{place}: features that share vocabulary `{table}` need one {key}. Received: {value}, "
                    f"but {expected} in `{first}`. Make them equal."
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
            elif not candidates[name].single_valued:
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


def _aggregate_problems(spec: RankingSpec) -> Iterator[str]:
    """What the blocks refer to and do not find, each with its cure."""
    features = {feature.name: feature for _, feature in spec.declared_features()}
    columns = [column for column in (spec.user_key, spec.item_key) if column]
    known = [name for name, feature in features.items() if feature.aggregate_key]
    known += [column for column in columns if column not in features]
    kinds = {**{name: f"a {f.type} feature" for name, f in features.items()}, **dict.fromkeys(columns, "a key column")}
    types = one_of(name for name, cls in feature_types().items() if cls.aggregate_key)
    kinds.update({sequence.name: "a sequence" for sequence in spec.sequences})
    for i, block in enumerate(spec.aggregates):
        for j, key in enumerate(block.keys):
            for part in key:
                if part not in known:
                    what = f"`{part}`, {kinds[part]}" if part in kinds else f"`{part}`"
                    yield (
                        f"aggregates[{i}].keys[{j}]: a single-valued {types} feature, or the key column of user or "
                        f"item, is expected. Received: {what}. Known: {', '.join(known) or 'none'}."
                    )
        for task in block.tasks:
            if task not in spec.task_names:
                names = ", ".join(spec.task_names)
                yield f"aggregates[{i}].tasks: the name of a task is expected. Received: `{task}`. Known: {names}."
        if block.timezone != spec.aggregates[0].timezone:
            yield (
                f"aggregates[{i}].timezone: one time zone in all blocks is expected, as a day is the same for all. "
                f"Received: `{block.timezone}`, but `{spec.aggregates[0].timezone}` in aggregates[0]. Make them equal."
            )


def _evaluation_problems(spec: RankingSpec) -> Iterator[str]:
    sliceable = [f.name for _, f in spec.feature_groups() if f.sliceable]
    what = f"a {one_of(name for name, cls in feature_types().items() if cls.sliceable)} feature"
    for i, names in enumerate(spec.evaluation.slices):
        for name in names:
            if name not in sliceable:
                yield _unknown(f"evaluation.slices[{i}]", what, name, sliceable)
    for name in spec.evaluation.gates:
        if name not in (*spec.task_names, "default"):
            yield _unknown(f"evaluation.gates.{name}", "a task (or `default`)", name, spec.task_names)
    stopping = spec.training.early_stopping
    if stopping and stopping.task not in spec.task_names:
        yield _unknown("training.early_stopping.task", "a task", stopping.task, spec.task_names)


def _serving_problems(spec: RankingSpec) -> Iterator[str]:
    if spec.serving.max_candidates < spec.request.max_candidates:
        yield (
            f"serving.max_candidates: at least request.max_candidates, {spec.request.max_candidates}, is expected, as "
            f"the evaluated requests are served ones. Received: {spec.serving.max_candidates}. Raise it."
        )
