"""One user's log rows become requests with point-in-time histories: plain Python, no Beam.

What a request knows is what was known when its first impression was made: the events of a history are strictly
earlier than that moment, whatever the order of the rows in the log.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from transform.errors import DataError
from transform.feature_types.base import Feature
from transform.feature_types.time import parse_time
from transform.features import request_example
from transform.ingest.sources import Sources
from transform.ingest.tables import Row
from transform.ingest.values import MISSING, parse_label, parse_weight
from transform.list_text import split_list
from transform.spec.data_sections import Sequence
from transform.spec.ranking_spec import RankingSpec

FindItem = Callable[[str], Mapping[str, str] | None]
SCORING_SPLIT = "all"


class Impression(NamedTuple):
    """One row of the log, parsed."""

    time: int
    digest: bytes
    origin: str
    log: Mapping[str, str]
    item: Mapping[str, str]
    labels: dict[str, float]  # NaN where missing or unobserved
    weight: float


class Event(NamedTuple):
    """One thing that the user did earlier: values by part of a sequence. Past events are at minus infinity."""

    time: float  # epoch milliseconds
    values: dict[str, Any]


class RequestBuilder:
    """Builds the requests of one user.

    Args:
        spec: RankingSpec.
        sources: Sources. Where columns come from.
    """

    def __init__(self, spec: RankingSpec, sources: Sources):
        self.spec = spec
        self.sources = sources
        self._item_feature = spec.item_feature
        self._candidate_feature = {feature.name: feature for feature in spec.features.candidate}
        self._groups = {
            "request": [f for group, f in spec.declared_features() if group != "candidate"],
            "candidate": list(spec.features.candidate),
        }
        self._carried = spec.carried_columns()
        numeric_split = isinstance(spec.split.train[0], int)
        self._split_value: Callable[[str], Any] = int if numeric_split else str
        # A weight that undoes down-sampling tells the label.
        outcomes = {task.label for task in spec.tasks} | set(spec.data.outcomes) | {spec.request.weight}
        self._known_columns = [column for column in sources.columns["log"] if column not in outcomes]

    def read(self, rows: Iterable[Row], find_item: FindItem, counts: Counter[str]) -> list[Impression]:
        """Parses rows, drops duplicates and puts them in the order of time.

        Args:
            rows: iterable of Row. All log rows of one user (or of one request, when no user is known), in any order.
            find_item: callable. The item table's row of an item, or None.
            counts: Counter. What was seen and dropped is added to it.

        Raises:
            DataError: when a value can't be used.
        """
        return sorted((self._parse(row, find_item, counts) for row in self._distinct(rows, counts)), key=self._order)

    def build(
        self,
        impressions: list[Impression],
        user: Mapping[str, str] | None,
        past: Mapping[str, str] | None,
        find_item: FindItem,
        counts: Counter[str],
    ) -> Iterator[tuple[str, dict[str, list[Any]]]]:
        """Groups impressions into requests and gives each its candidates, histories and labels.

        Key columns that `aggregates` name and that are no features are among the lists under their own name.

        Args:
            impressions: list of Impression. What `read` returned.
            user: mapping or None. The user's row of the user table.
            past: mapping or None. The user's row of the past.
            find_item: callable. The item table's row of an item, or None.
            counts: Counter. What was seen and dropped is added to it.

        Yields:
            The split's name and a request's lists by example key.

        Raises:
            DataError: when a value can't be used, or a feature of the request is not constant in it.
        """
        past_end, timelines = self._timelines(impressions, past, find_item, counts)
        requests: dict[tuple[str, ...], list[Impression]] = {}
        for impression in impressions:
            key = tuple(impression.log[column] for column in self.spec.request.key_columns)
            requests.setdefault(key, []).append(impression)
        for key, members in requests.items():
            split = self._split(members[0])
            if split is None:
                counts["impressions_outside_splits"] += len(members)
                continue
            head: dict[str, list[Any]] = {
                request_example.REQUEST_ID: [self._request_id(key, members[0])],
                request_example.REQUEST_TIME: [members[0].time],
            }
            head.update(self._request_values(members, user))
            head.update(self._histories(members[0].time, past_end, timelines))
            counts[f"{split}_requests"] += 1
            counts[f"{split}_impressions"] += len(members)
            size = self.spec.request.max_candidates
            counts["requests_above_max_candidates"] += len(members) > size
            for start in range(0, len(members), size):
                candidates = members[start : start + size]
                yield split, {**head, **self._candidate_values(candidates), **self._targets(candidates, split, counts)}

    # === Rows ===

    def _order(self, impression: Impression) -> tuple[Any, ...]:
        """Impressions of one moment stand in an order of what was known then: their outcomes must not move them."""
        return impression.time, [impression.log[column] for column in self._known_columns], impression.digest

    def _distinct(self, rows: Iterable[Row], counts: Counter[str]) -> Iterator[Row]:
        seen: set[bytes] = set()
        for row in rows:
            counts["impressions_read"] += 1
            if self.spec.data.drop_duplicates and row.digest in seen:
                counts["duplicates_dropped"] += 1
                continue
            seen.add(row.digest)
            yield row

    def _parse(self, row: Row, find_item: FindItem, counts: Counter[str]) -> Impression:
        log = dict(zip(self.sources.columns["log"], row.values, strict=True))
        item: Mapping[str, str] | None = {}
        if self.sources.files["item"]:
            item = find_item(log[self.spec.item_key or ""])
            if item is None:
                counts["impressions_without_item_row"] += 1
        labels = (
            self._labels(log, row.origin) if self.sources.labelled else dict.fromkeys(self.spec.task_names, MISSING)
        )
        time = parse_time(log[self.spec.request.time], row.origin, self.spec.request.time)
        column = self.spec.request.weight if self.sources.labelled else None
        weight = parse_weight(log[column], row.origin, column) if column else 1.0
        return Impression(time, row.digest, row.origin, log, item or {}, labels, weight)

    def _labels(self, log: Mapping[str, str], origin: str) -> dict[str, float]:
        return self.observed({task.name: parse_label(log[task.label], origin, task.label) for task in self.spec.tasks})

    def observed(self, labels: dict[str, float]) -> dict[str, float]:
        """The labels of all tasks, NaN where `observed_when` says that they are not observed."""
        parents = {task.name: task.observed_when for task in self.spec.tasks}

        def observed(task: str) -> bool:
            parent = parents[task]
            return parent is None or (labels[parent] == 1.0 and observed(parent))

        return {task: label if observed(task) else MISSING for task, label in labels.items()}

    def _request_id(self, key: tuple[str, ...], first: Impression) -> str:
        """A name that no other request has: the user is part of it where the columns that group don't say who it is."""
        user_key = self.spec.user_key
        if self.spec.request.group_by and user_key and user_key not in self.spec.request.group_by:
            key = (first.log[user_key], *key)
        return "|".join(part.replace("|", "||") for part in key)

    def _split(self, first: Impression) -> str | None:
        if self.sources.for_scoring:
            return SCORING_SPLIT
        column = self.spec.split.by
        try:
            value = self._split_value(first.log[column])
        except ValueError:
            raise DataError(
                f"{first.origin}: a whole number is expected in `{column}`, as the bounds in `split` are numbers. "
                f"Received: `{first.log[column]}`. Quote the bounds in the spec, or correct the column."
            ) from None
        for name, (start, end) in self.spec.split.ranges().items():
            if start <= value <= end:
                return name
        return None

    # === Histories ===

    def _timelines(
        self, impressions: list[Impression], past: Mapping[str, str] | None, find_item: FindItem, counts: Counter[str]
    ) -> tuple[float, dict[str, list[Event]]]:
        """Every sequence's events in time order, and the time up to which the past speaks."""
        spec, past_spec = self.spec, self.spec.data.past
        past_end = self.past_end(past)
        covered: Collection[str] = ()
        timelines: dict[str, list[Event]] = {sequence.name: [] for sequence in spec.sequences}
        if past and past_spec:
            covered = past_spec.sequences
            for name in covered:
                timelines[name] = list(self._past_events(name, past, find_item))
        for impression in impressions:
            within_past = impression.time <= past_end
            counts["events_within_past"] += within_past
            for sequence in spec.sequences:
                if within_past and sequence.name in covered:
                    continue  # the past lists hold it already
                if sequence.where is None or impression.labels[sequence.where] == 1.0:
                    timelines[sequence.name].append(Event(impression.time, self._event_values(sequence, impression)))
        return past_end, timelines

    def past_end(self, past: Mapping[str, str] | None) -> float:
        """The time of a user's newest past event; minus infinity when it is before all else."""
        past_spec = self.spec.data.past
        if past is None or past_spec is None or past_spec.time is None:
            return -math.inf
        return parse_time(past[past_spec.time], f"past of {past[past_spec.key]}", past_spec.time)

    def _event_values(self, sequence: Sequence, impression: Impression) -> dict[str, Any]:
        values = {name: self._value(self._candidate_feature[name], impression) for name in sequence.features}
        return {**values, **{task: impression.labels[task] for task in sequence.feedback}}

    def _past_events(self, name: str, past: Mapping[str, str], find_item: FindItem) -> Iterator[Event]:
        """The past's events of a sequence; features that the past does not hold come from the item table."""
        sequence = next(sequence for sequence in self.spec.sequences if sequence.name == name)
        assert self.spec.data.past is not None
        origin = f"past of {past[self.spec.data.past.key]}"
        for given, item, feedback in self.past_rows(name, past, find_item):
            parts: dict[str, Any] = {}
            for part in sequence.features:
                section, column = self.sources.feature_source[part]
                text = given.get(part, item.get(column, "") if section == "item" else "")
                parts[part] = self._candidate_feature[part].parse(text, origin)
            for task in sequence.feedback:
                parts[task] = feedback.get(task, 1.0 if task == sequence.where else MISSING)
            yield Event(-math.inf, parts)

    def past_rows(
        self, name: str, past: Mapping[str, str], find_item: FindItem
    ) -> Iterator[tuple[dict[str, str], Mapping[str, str], dict[str, float]]]:
        """The past's events of a sequence, oldest first.

        Yields:
            The features that the past holds, the row of the item table, and the feedback of the tasks that the past
            knows.
        """
        past_spec = self.spec.data.past
        assert past_spec is not None
        separator = past_spec.separator
        lists = {feature: split_list(past[column], separator) for feature, column in past_spec.sequences[name].items()}
        if len({len(values) for values in lists.values()}) > 1:
            sizes = ", ".join(f"{feature} {len(values)}" for feature, values in lists.items())
            raise DataError(
                f"past of `{past[past_spec.key]}`, sequence `{name}`: lists of one length are expected. "
                f"Received: {sizes}. Correct the row."
            )
        positives = {task: set(split_list(past[column], separator)) for task, column in past_spec.feedback.items()}
        for values in zip(*lists.values(), strict=True):
            given = dict(zip(lists, values, strict=True))
            item_id = given.get(self._item_feature or "", "")
            item = (find_item(item_id) if item_id and self.sources.files["item"] else None) or {}
            yield given, item, {task: float(item_id in liked) for task, liked in positives.items() if item_id}

    def _histories(self, time: int, past_end: float, timelines: dict[str, list[Event]]) -> dict[str, list[Any]]:
        values: dict[str, list[Any]] = {}
        for sequence in self.spec.sequences:
            timeline = timelines[sequence.name]
            end = bisect.bisect_left(timeline, float(time), key=_time)
            # A request that is not later than the past's newest event can't know which of its events came before.
            start = bisect.bisect_right(timeline, -math.inf, key=_time) if time <= past_end else 0
            events = timeline[max(start, end - sequence.length) : end]
            for part in (*sequence.features, *sequence.feedback):
                values[request_example.sequence_key(sequence.name, part)] = [event.values[part] for event in events]
        return values

    # === Values ===

    def _value(self, feature: Feature, impression: Impression) -> Any:
        section, column = self.sources.feature_source[feature.name]
        text = impression.log[column] if section == "log" else impression.item.get(column, "")
        return feature.parse(text, impression.origin)

    def _request_values(self, members: list[Impression], user: Mapping[str, str] | None) -> dict[str, list[Any]]:
        values: dict[str, list[Any]] = {}
        for feature in self._groups["request"]:
            section, column = self.sources.feature_source[feature.name]
            if section == "user":
                text = user[column] if user else ""
            else:
                text = members[0].log[column]
                changed = next((member for member in members if member.log[column] != text), None)
                if changed and feature.pick != "first":
                    raise DataError(
                        f"{changed.origin}: feature `{feature.name}` should be constant within a request. Received: "
                        f"`{changed.log[column]}` after `{text}` ({members[0].origin}). Make it a candidate feature, "
                        "or set `pick: first`."
                    )
            values[feature.name] = [feature.parse(text, members[0].origin)]
        values.update({name: [members[0].log[name]] for name, group in self._carried.items() if group == "user"})
        return values

    def _candidate_values(self, candidates: list[Impression]) -> dict[str, list[Any]]:
        values: dict[str, list[Any]] = {request_example.CANDIDATE_COUNT: [len(candidates)]}
        for feature in self._groups["candidate"]:
            values.update(feature.encode([self._value(feature, candidate) for candidate in candidates]))
        for name, group in self._carried.items():
            if group == "candidate":
                values[name] = [candidate.log[name] for candidate in candidates]
        return values

    def _targets(self, candidates: list[Impression], split: str, counts: Counter[str]) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {}
        for task in self.spec.task_names:
            labels = [candidate.labels[task] for candidate in candidates]
            weights = [
                0.0 if math.isnan(label) else candidate.weight
                for label, candidate in zip(labels, candidates, strict=True)
            ]
            values[request_example.label_key(task)] = [
                label if weight else 0.0 for label, weight in zip(labels, weights, strict=True)
            ]
            values[request_example.weight_key(task)] = weights
            counts[f"{split}_positives_{task}"] += int(sum(values[request_example.label_key(task)]))
        return values


def _time(event: Event) -> float:
    return event.time
