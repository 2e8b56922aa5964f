"""Point-in-time counts of keys: what impressions add to them by day, and what they come to as of a day. No Beam.

The counts of a key and a day are whole numbers, so that their sums do not depend on an order: for each counted task the
positives and the observed labels of the log, then those of the past.
"""

from __future__ import annotations

import bisect
import math
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from transform.errors import DataError
from transform.feature_types.aggregate import AggregateFeature
from transform.features.request_example import REQUEST_TIME
from transform.ingest.request_builder import FindItem, Impression, RequestBuilder
from transform.spec.aggregates import EVERYTHING, time_zone
from transform.spec.ranking_spec import RankingSpec

Counts = tuple[int, ...]
Key = tuple[Any, ...]  # the index of the `AggregateKey`, then the values of its parts; OVERALL for all impressions
OVERALL: Key = (-1,)
BEFORE_ALL = 0  # the day of a past without a time
PER_TASK = 4  # positives and observed labels of the log, then of the past


@dataclass(frozen=True)
class AggregateKey:
    """A key with all its features, of whatever block.

    Attributes:
        parts: tuple of str. Names of features or of key columns.
        features: tuple of AggregateFeature.
    """

    parts: tuple[str, ...]
    features: tuple[AggregateFeature, ...]


class AggregateColumns:
    """What a spec counts.

    Args:
        spec: RankingSpec. With `aggregates`.
    """

    def __init__(self, spec: RankingSpec):
        by_key: dict[tuple[str, ...], list[AggregateFeature]] = {}
        for feature in spec.aggregate_features():
            by_key.setdefault(feature.key, []).append(feature)
        self.keys = tuple(AggregateKey(parts, tuple(features)) for parts, features in by_key.items())
        self.tasks = tuple(dict.fromkeys(f.task for f in spec.aggregate_features()))
        self.width = PER_TASK * len(self.tasks)
        self._time_zone = time_zone(spec.aggregates[0].timezone)

    def day(self, milliseconds: int, origin: str) -> int:
        """The day of a moment as a number: 1 is the first of January of the year 1."""
        try:
            return datetime.fromtimestamp(milliseconds // 1000, self._time_zone).toordinal()
        except (ValueError, OverflowError, OSError) as error:
            raise DataError(
                f"{origin}: epoch milliseconds of a day between the years 1 and 9999 are expected. "
                f"Received: {milliseconds}. Convert the time, as 1650813567259 for 24 April 2022, 15:19:27 UTC."
            ) from error

    def request_day(self, values: Mapping[str, list[Any]]) -> int:
        """The day of a request: that of its first impression."""
        return self.day(values[REQUEST_TIME][0], "a request")

    def request_keys(self, values: Mapping[str, list[Any]]) -> Iterator[list[Key | None]]:
        """The keys of a request, for each `AggregateKey` one or N; None where a part is missing."""
        for index, key in enumerate(self.keys):
            columns = [values[part] for part in key.parts]
            size = max(map(len, columns))
            parts = zip(*(column * size if len(column) < size else column for column in columns), strict=True)
            yield [(index, *part) if all(part) else None for part in parts]

    def values(self, index: int, of_key: Timeline, overall: Timeline, day: int) -> list[float]:
        """The features of a key as of the day before `day`, in their order.

        A rate is smoothed towards the task's overall rate as of the same day; with no label of the task before it,
        there is none: NaN.
        """
        features = self.keys[index].features
        windows = {feature.window: of_key.before(day, feature.window) for feature in features}
        prior = overall.before(day, EVERYTHING)
        found = []
        for feature in features:
            task = self.tasks.index(feature.task)
            positives, observed = windows[feature.window][task]
            if feature.statistic == "count":
                found.append(float(observed))
            else:
                all_positives, everything = prior[task]
                rate = all_positives / everything if everything else math.nan
                found.append((positives + feature.smoothing * rate) / (observed + feature.smoothing))
        return found


class Timeline:
    """The counts of one key by day, summed up so that every window is a difference.

    Args:
        by_day: iterable of (day, Counts). Each day once, in any order.
        width: int. The number of counts.
    """

    def __init__(self, by_day: Iterable[tuple[int, Counts]], width: int):
        ordered = sorted(by_day)
        self._days = [day for day, _ in ordered]
        self._sums = list(accumulate((counts for _, counts in ordered), add_counts, initial=(0,) * width))

    def before(self, day: int, window: str) -> list[tuple[int, int]]:
        """Positives and observed labels by task in the window that ends before `day`; the past is in `all` alone."""
        end = bisect.bisect_left(self._days, day)
        start = 0 if window == EVERYTHING else bisect.bisect_left(self._days, day - int(window[:-1]))
        counts = list(map(operator.sub, self._sums[end], self._sums[start]))
        found = []
        for task in range(0, len(counts), PER_TASK):
            positives, observed, past_positives, past_observed = counts[task : task + PER_TASK]
            if window == EVERYTHING:
                positives, observed = positives + past_positives, observed + past_observed
            found.append((positives, observed))
        return found


def add_counts(one: Counts, other: Counts) -> Counts:
    """The sum of two lists of counts."""
    return tuple(map(operator.add, one, other))


class AggregateCounter:
    """What the impressions of one user add to the counts of keys.

    Events of the past are those of its first sequence without `where`, the user's list of all impressions. They have no
    day of their own: they are there from the day after their newest one on, for the keys whose parts are known of them,
    and the tasks whose feedback is. From that day on they stand for the log's rows that are not later than they are.

    Args:
        spec: RankingSpec. With `aggregates`.
        builder: RequestBuilder.
    """

    def __init__(self, spec: RankingSpec, builder: RequestBuilder):
        self.aggregates = AggregateColumns(spec)
        self._builder = builder
        features = {feature.name for _, feature in spec.declared_features()}
        self._columns = {
            part: builder.sources.feature_source[part] if part in features else ("log", part)
            for key in self.aggregates.keys
            for part in key.parts
        }
        self._user_key, self._item_key, self._item_feature = spec.user_key, spec.item_key, spec.item_feature
        past = spec.data.past
        where = {sequence.name: sequence.where for sequence in spec.sequences}
        self._past_sequence = next((name for name in (past.sequences if past else ()) if where[name] is None), None)
        given = past.sequences[self._past_sequence] if past and self._past_sequence else {}
        self._past_keys = [
            index
            for index, key in enumerate(self.aggregates.keys)
            if all(self._is_known_of_past(part, given) for part in key.parts)
        ]
        parents = {task.name: task.observed_when for task in spec.tasks}
        self._past_tasks = [_is_known(task, past.feedback if past else (), parents) for task in self.aggregates.tasks]
        self._unlabelled = dict.fromkeys(spec.task_names, math.nan)

    def count(
        self,
        impressions: list[Impression],
        user: Mapping[str, str] | None,
        past: Mapping[str, str] | None,
        find_item: FindItem,
    ) -> dict[tuple[Key, int], list[int]]:
        """The counts that one user's impressions and past add, by key and day.

        Args:
            impressions: list of Impression. Of one user, without duplicates.
            user: mapping or None. The user's row of the user table.
            past: mapping or None. The user's row of the past.
            find_item: callable. The item table's row of an item, or None.
        """
        sums: dict[tuple[Key, int], list[int]] = {}
        every_key = range(len(self.aggregates.keys))
        past_end = self._builder.past_end(past)
        past_day = BEFORE_ALL if past_end == -math.inf else self.aggregates.day(int(past_end), "the past of a user")
        for impression in impressions:
            rows = {"log": impression.log, "item": impression.item, "user": user or {}}
            texts = {part: rows[section].get(column, "") for part, (section, column) in self._columns.items()}
            day = self.aggregates.day(impression.time, impression.origin)
            self._add(sums, texts, every_key, day, self._of_log(impression.labels))
            if impression.time <= past_end and self._past_sequence:
                self._add(sums, texts, self._past_keys, past_day, self._of_past(impression.labels, sign=-1))
        if past and self._past_sequence:
            for given, item, feedback in self._builder.past_rows(self._past_sequence, past, find_item):
                texts = {
                    part: self._past_text(part, given, {"item": item, "user": user or {}, "log": {}}, past)
                    for part in self._columns
                }
                labels = self._builder.observed({**self._unlabelled, **feedback})
                self._add(sums, texts, self._past_keys, past_day, self._of_past(labels))
        return sums

    def _add(
        self,
        sums: dict[tuple[Key, int], list[int]],
        texts: Mapping[str, str],
        indices: Iterable[int],
        day: int,
        counts: list[int],
    ) -> None:
        """Adds counts to the sums of the keys whose parts are all there, and to those of all impressions."""
        keys: list[Key] = [OVERALL]
        for index in indices:
            values = tuple(texts[part] for part in self.aggregates.keys[index].parts)
            if all(values):
                keys.append((index, *values))
        for key in keys:
            of_key = sums.setdefault((key, day), [0] * self.aggregates.width)
            for place, count in enumerate(counts):
                if count:
                    of_key[place] += count

    def _of_log(self, labels: Mapping[str, float]) -> list[int]:
        counts = []
        for task in self.aggregates.tasks:
            counts += [int(labels[task] == 1.0), int(not math.isnan(labels[task])), 0, 0]
        return counts

    def _of_past(self, labels: Mapping[str, float], sign: int = 1) -> list[int]:
        """The counts of an event of the past, or of a row of the log that it stands for."""
        counts = []
        for task, known in zip(self.aggregates.tasks, self._past_tasks, strict=True):
            positive, observed = labels[task] == 1.0, known and not math.isnan(labels[task])
            counts += [0, 0, sign * (positive and observed), sign * observed]
        return counts

    # === What is known of the past ===

    def _is_known_of_past(self, part: str, given: Mapping[str, str]) -> bool:
        section, column = self._columns[part]
        if part in given or section == "user" or column == self._user_key:
            return True
        return self._item_feature in given and (section == "item" or column == self._item_key)

    def _past_text(
        self, part: str, given: Mapping[str, str], rows: Mapping[str, Mapping[str, str]], past: Mapping[str, str]
    ) -> str:
        section, column = self._columns[part]
        if part in given:
            return given[part]
        if column == self._user_key:
            return past[column]
        if column == self._item_key:
            return given.get(self._item_feature or "", "")
        return rows[section].get(column, "")


def _is_known(task: str, feedback: Collection[str], parents: Mapping[str, str | None]) -> bool:
    """Whether the past knows a task's labels, and whether they are observed."""
    parent = parents[task]
    return task in feedback and (parent is None or _is_known(parent, feedback, parents))
