"""Aggregate features in Beam: counts are summed by key and day, and joined to requests by key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

import apache_beam as beam
import tensorflow as tf

from transform.errors import DataError
from transform.ingest.aggregates.counter import OVERALL, AggregateColumns, Key, Timeline, add_counts
from transform.spec.aggregates import EVERYTHING
from transform.spec.loading import parse_spec
from transform.spec.ranking_spec import RankingSpec

EVENTS = "events"
COUNTS = "counts"
OTHER_DAYS = "requests_of_other_days_than_the_table"
NOTHING_COUNTED = "requests_with_nothing_counted_before"
MANIFEST = "aggregates.json"


class KeyCounts(beam.PTransform):
    """((key, day), counts) of many users -> summed, by key: (key, (day, counts))."""

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        """Builds the graph."""
        return (
            events
            | "SumByKeyAndDay" >> beam.CombinePerKey(_sum)  # type: ignore[arg-type]
            | "ByKey" >> beam.MapTuple(lambda place, counts: (place[0], (place[1], counts)))
        )


def _sum(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    total: tuple[int, ...] = ()
    for part in counts:
        total = add_counts(total, part) if total else tuple(part)
    return total


def overall_timeline(key_counts: beam.PCollection, width: int) -> beam.pvalue.AsSingleton:
    """The `Timeline` of all impressions as a side input: as many numbers as there are days."""
    timeline = (
        key_counts
        | "OfAll" >> beam.Filter(lambda pair: pair[0] == OVERALL)
        | "AllDays" >> beam.Values()
        | "ListDays" >> beam.combiners.ToList()
        | "OverallTimeline" >> beam.Map(Timeline, width)
    )
    return beam.pvalue.AsSingleton(timeline)


class AddAggregates(beam.PTransform):
    """Gives requests their aggregate features: (request id, (split, parts)) -> the same, parts completed.

    Args:
        spec: RankingSpec. With `aggregates`.
        table: str, optional. The folder of an exported table to read the features from, whatever the requests' days.
            Defaults to aggregates the events as of the day before each request.

    Call arguments:
        A dict of PCollections: `requests`, and without a table `events`, ((key, day), counts).

    Returns:
        Requests in the main output; under `"counts"` (name, number) of requests whose day is not that of the table, or
        that nothing was counted before.
    """

    def __init__(self, spec: RankingSpec, table: str | None = None):
        super().__init__()
        self._spec = spec
        self._table = table
        self._as_of = check_table(spec, table) if table else None

    def expand(self, collections: Mapping[str, beam.PCollection]) -> Any:
        """Builds the graph."""
        requests, aggregates = collections["requests"], AggregateColumns(self._spec)
        if self._table:
            known = [
                requests.pipeline | f"Table[{index}]" >> _ReadTable(self._spec, self._table, index)
                for index in range(len(aggregates.keys))
            ] | "AllTables" >> beam.Flatten()
            answers: Any = _FromTable()
            unseen = (
                known
                | "OfUnseen" >> beam.Filter(lambda pair: None in pair[0])
                | "ByIndex" >> beam.MapTuple(lambda key, values: (key[0], values))
                | "UnseenValues" >> beam.combiners.ToDict()
            )
            of_unseen = beam.pvalue.AsSingleton(unseen)
        else:
            known = collections[EVENTS] | KeyCounts()
            of_unseen = overall_timeline(known, aggregates.width)
            answers = _AsOfDay(self._spec)
        asked = requests | "Ask" >> beam.ParDo(_Ask(self._spec))
        found = (
            {"known": known, "asked": asked}
            | "JoinByKey" >> beam.CoGroupByKey()
            | "Answer" >> beam.ParDo(answers, of_unseen)
        )
        return (
            {"requests": requests, "found": found}
            | "JoinByRequest" >> beam.CoGroupByKey()
            | "Complete" >> beam.ParDo(_Complete(self._spec, self._as_of), of_unseen).with_outputs(COUNTS, main="main")
        )


class _OfSpec(beam.DoFn):
    """Makes `AggregateColumns` where it runs."""

    def __init__(self, spec: RankingSpec):
        self._spec_json = spec.to_json()

    def setup(self) -> None:
        self._spec = parse_spec(self._spec_json)
        self._aggregates = AggregateColumns(self._spec)


class _Ask(_OfSpec):
    """A request -> (key, (day, request id)) for each of its keys once."""

    def process(self, element: Any) -> Iterator[tuple[Key, tuple[int, str]]]:
        request, (_, parts) = element
        day = self._aggregates.request_day(parts[0])
        keys = (key for values in parts for column in self._aggregates.request_keys(values) for key in column if key)
        for key in dict.fromkeys(keys):
            yield key, (day, request)


class _AsOfDay(_OfSpec):
    """The counts of a key and who asks for it -> (request id, (key, values))."""

    def process(self, element: Any, overall: Timeline) -> Iterator[tuple[str, tuple[Key, list[float]]]]:
        key, grouped = element
        timeline = Timeline(grouped["known"], self._aggregates.width)
        values: dict[int, list[float]] = {}
        for day, request in grouped["asked"]:
            if day not in values:
                values[day] = self._aggregates.values(key[0], timeline, overall, day)
            yield request, (key, values[day])


class _FromTable(beam.DoFn):
    """The row of a key and who asks for it -> (request id, (key, values))."""

    def process(self, element: Any, unseen: dict[int, list[float]]) -> Iterator[tuple[str, tuple[Key, list[float]]]]:
        key, grouped = element
        values = next(iter(grouped["known"]), unseen[key[0]])
        for _, request in grouped["asked"]:
            yield request, (key, values)


class _Complete(_OfSpec):
    """Writes the values into the requests; a key with a missing part is one that was never seen."""

    def __init__(self, spec: RankingSpec, as_of: int | None):
        super().__init__(spec)
        self._as_of = as_of

    def process(self, element: Any, of_unseen: Any) -> Iterator[Any]:
        request, grouped = element
        found = dict(grouped["found"])
        carried = self._spec.carried_columns()
        for split, parts in grouped["requests"]:
            day = self._aggregates.request_day(parts[0])
            if self._as_of is None and not any(observed for _, observed in of_unseen.before(day, EVERYTHING)):
                yield beam.pvalue.TaggedOutput(COUNTS, (NOTHING_COUNTED, 1))
            elif self._as_of not in (None, day):
                yield beam.pvalue.TaggedOutput(COUNTS, (OTHER_DAYS, 1))
            completed = []
            for values in parts:
                counted = {}
                for index, keys in enumerate(self._aggregates.request_keys(values)):
                    rows = [found.get(key) or self._unseen(index, day, of_unseen) for key in keys]
                    for place, feature in enumerate(self._aggregates.keys[index].features):
                        counted[feature.name] = [row[place] for row in rows]
                completed.append({**{name: v for name, v in values.items() if name not in carried}, **counted})
            yield request, (split, completed)

    def _unseen(self, index: int, day: int, of_unseen: Any) -> list[float]:
        if self._as_of is not None:
            return of_unseen[index]
        return self._aggregates.values(index, Timeline([], self._aggregates.width), of_unseen, day)


# === The exported table ===


def table_file(folder: str, parts: Iterable[str]) -> str:
    """The Parquet file of a key."""
    return os.path.join(folder, f"{'-'.join(parts)}.parquet")


def check_table(spec: RankingSpec, folder: str) -> int:
    """The day that an exported table is of, as a number; the table must be one of the spec's features.

    Raises:
        DataError: when the folder holds no table, or one of other features.
    """
    path = os.path.join(folder, MANIFEST)
    if not tf.io.gfile.exists(path):
        raise DataError(
            f"--aggregates: a folder that `onerank aggregates` wrote is expected. "
            f"Received: `{folder}`, which holds no {MANIFEST}. Export the table first."
        )
    with tf.io.gfile.GFile(path) as file:
        manifest = json.loads(file.read())
    if manifest["aggregates"] != described(spec):
        raise DataError(
            f"--aggregates: a table of the model's own aggregate features is expected. Received: `{folder}`, whose "
            "section `aggregates` is another. Export it with the spec that the model was trained with."
        )
    return date.fromisoformat(manifest["as_of"]).toordinal()


def described(spec: RankingSpec) -> list[dict[str, Any]]:
    """What a table's values depend on, as plain JSON values."""
    return [block.model_dump(mode="json", exclude={"buckets", "dim"}) for block in spec.aggregates]


class _ReadTable(beam.PTransform):
    """The rows of one key's file as (key, values); the key of the unseen has None for its parts."""

    def __init__(self, spec: RankingSpec, folder: str, index: int):
        super().__init__()
        self._key = AggregateColumns(spec).keys[index]
        self._index = index
        self._path = table_file(folder, self._key.parts)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Builds the graph."""
        index, parts = self._index, self._key.parts
        names = [feature.name for feature in self._key.features]

        def row(values: dict[str, Any]) -> tuple[Key, list[float]]:
            numbers = [float("nan") if values[name] is None else float(values[name]) for name in names]
            return (index, *(values[part] for part in parts)), numbers

        return pipeline | beam.io.ReadFromParquet(self._path) | beam.Map(row)
