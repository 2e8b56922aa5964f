"""The Beam transform from an impression log to request examples. Runs on any Beam runner."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import apache_beam as beam
import tensorflow as tf

from transform.errors import DataError
from transform.feature_types.time import parse_time
from transform.features import request_example
from transform.ingest.aggregates.beam_join import COUNTS, EVENTS, AddAggregates
from transform.ingest.aggregates.counter import AggregateCounter
from transform.ingest.request_builder import SCORING_SPLIT, RequestBuilder
from transform.ingest.sources import Sources, resolve_sources
from transform.ingest.tables import Row, read_rows
from transform.spec.data_sections import SPLITS
from transform.spec.loading import parse_spec
from transform.spec.ranking_spec import RankingSpec


class RequestExamples(beam.PTransform):
    """Impression log, user table, item table and past -> serialized request examples by split.

    Rows are grouped by user, so that every request's histories are built from that user's earlier rows alone. The item
    table travels as a side input: the columns in use should fit a worker's memory.

    Args:
        spec: RankingSpec.
        data_dir: str. The folder that the spec's paths are relative to.
        for_scoring: bool. Whether the log is only to be scored: labels are optional, and all requests are in the one
            split `all`. Defaults to `False`.
        table: str, optional. The folder of an exported table of aggregate features. Defaults to counting them from the
            log and the past, as of the day before each request.

    Returns (of the transform):
        dict. A PCollection of bytes by split, and under `"counts"` one dict of what was read, dropped and written.

    Raises:
        DataError: at construction when a file or a column is missing; in the run when a value can't be used.
        SpecError: at construction when the split bounds lack their as-of date.
    """

    def __init__(self, spec: RankingSpec, data_dir: str, for_scoring: bool = False, table: str | None = None):
        super().__init__()
        self._spec = spec
        self._sources = resolve_sources(spec, data_dir, for_scoring)
        if not for_scoring:
            spec.split.ranges()
        self._counted_before = table is not None
        if table and not spec.aggregates:
            raise DataError(
                "--aggregates: a model with aggregate features is expected. Received: one without. Omit the option."
            )
        if spec.aggregates and not table and not self._sources.labelled:
            raise DataError(
                "aggregates: a log with labels to count, or an exported table, is expected. Received: a log without "
                "labels. Export a table with `onerank aggregates` and give its folder "
                "with --aggregates."
            )
        self._add_aggregates = AddAggregates(spec, table) if spec.aggregates else None

    def expand(self, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        """Builds the graph."""
        for_aggregates = self._add_aggregates is not None and not self._counted_before
        built = _build(pipeline, self._spec, self._sources, for_aggregates)
        requests, counts = built["requests"], [built["read_counts"], built[COUNTS]]
        if self._add_aggregates:
            added = {"requests": requests, EVENTS: built[EVENTS]} | self._add_aggregates
            requests = added["main"]
            counts.append(added[COUNTS])
        splits = (SCORING_SPLIT,) if self._sources.for_scoring else SPLITS
        encoded = requests | "Encode" >> beam.ParDo(_Encode()).with_outputs(*splits)
        total = (
            counts
            | beam.Flatten()
            | "SumCounts" >> beam.CombinePerKey(_total)  # type: ignore[arg-type]
            | "AllCounts" >> beam.combiners.ToDict()
        )
        return {**{split: encoded[split] for split in splits}, COUNTS: total}


class AggregateEvents(beam.PTransform):
    """Impression log, tables and past -> ((key, day), counts), of which `aggregates` are made.

    Args:
        spec: RankingSpec. With `aggregates`.
        data_dir: str. The folder that the spec's paths are relative to.

    Raises:
        DataError: as `RequestExamples`.
    """

    def __init__(self, spec: RankingSpec, data_dir: str):
        super().__init__()
        self._spec = spec
        self._sources = resolve_sources(spec, data_dir)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Builds the graph."""
        return _build(pipeline, self._spec, self._sources, for_aggregates=True, requests=False)[EVENTS]


def _build(
    pipeline: beam.Pipeline, spec: RankingSpec, sources: Sources, for_aggregates: bool, requests: bool = True
) -> dict[str, beam.PCollection]:
    """Groups rows by user: requests as (id, (split, parts)), events to count, and counts of what was seen."""
    read = (
        pipeline
        | "LogFiles" >> beam.Create(sources.files["log"])
        | "ReadLog" >> beam.ParDo(_ReadLog(spec, sources)).with_outputs(COUNTS, main="rows")
    )
    grouped = {"log": read["rows"]}
    if spec.user_key:
        for name in ("user", "past"):
            grouped[name] = _read_table(pipeline, name, sources)
        if spec.request.id:
            _check_one_user_a_request(read["rows"], spec, sources)
    items = _read_table(pipeline, "item", sources) | "OneRowAnItem" >> beam.GroupByKey() | beam.MapTuple(_single_row)
    build = beam.ParDo(_BuildRequests(spec, sources, for_aggregates, requests), items=beam.pvalue.AsDict(items))
    built = (
        grouped
        | "GroupByUser" >> beam.CoGroupByKey()
        | "BuildRequests" >> build.with_outputs(EVENTS, COUNTS, main="requests")
    )
    return {"requests": built["requests"], EVENTS: built[EVENTS], COUNTS: built[COUNTS], "read_counts": read[COUNTS]}


class WriteCounts(beam.PTransform):
    """Writes the counts of `RequestExamples` as one JSON file.

    Args:
        path: str. The file.
    """

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def expand(self, counts: beam.PCollection) -> beam.PCollection:
        """Builds the graph."""
        return counts | beam.Map(_write_json, self._path)


def _total(counts: Iterable[int]) -> int:
    return sum(counts)


def _write_json(content: dict[str, int], path: str) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(content, indent=1, sort_keys=True))


class _ReadLog(beam.DoFn):
    """Reads log files into (user or request, row), and counts rows that came out of order."""

    def __init__(self, spec: RankingSpec, sources: Sources):
        columns = sources.columns["log"]
        self._columns = columns
        self._user = columns.index(spec.user_key) if spec.user_key else None
        self._request = [columns.index(key) for key in spec.request.key_columns]
        self._time, self._time_column = columns.index(spec.request.time), spec.request.time
        self._split = columns.index(spec.request.time if sources.for_scoring else spec.split.by)

    def process(self, path: str) -> Iterator[Any]:
        counts: Counter[str] = Counter()
        newest, newest_split = 0, ""
        for row in read_rows(path, self._columns, with_digest=True):
            time = parse_time(row.values[self._time], row.origin, self._time_column)
            split = row.values[self._split]
            counts["out_of_order_rows"] += time < newest
            counts["late_rows"] += time < newest and split != newest_split
            if time >= newest:
                newest, newest_split = time, split
            user = row.values[self._user] if self._user is not None else ""
            counts["impressions_without_user"] += self._user is not None and not user
            # A request of nobody stands alone: strangers share no history.
            yield user or "|".join(["", *(row.values[key] for key in self._request)]), tuple(row)
        for name, count in counts.items():
            yield beam.pvalue.TaggedOutput(COUNTS, (name, int(count)))


def _read_table(pipeline: beam.Pipeline, name: str, sources: Sources) -> beam.PCollection:
    """A side table as (key, (origin, values)); the key is the first column."""
    return (
        pipeline
        | f"Files[{name}]" >> beam.Create(list(sources.files[name]))
        | f"Read[{name}]"
        >> beam.FlatMap(
            lambda path: ((row.values[0], (row.origin, row.values)) for row in read_rows(path, sources.columns[name]))
        )
    )


def _single_row(key: str, rows: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]]:
    """The one row of a key; rows that differ for one key are an error."""
    first, *others = sorted(rows)
    for origin, values in others:
        if tuple(values) != tuple(first[1]):
            raise DataError(
                f"{origin}: one row a key is expected. Received: key `{key}` again with other values than in "
                f"{first[0]}. Keep the row that is right."
            )
    return key, first[1]


def _check_one_user_a_request(log: beam.PCollection, spec: RankingSpec, sources: Sources) -> None:
    """A request id that two users share would silently become two requests: reject it."""
    place = sources.columns["log"].index(spec.request.id)

    def single_user(request: str, users: Iterable[str]) -> None:
        distinct = sorted(set(users))
        if len(distinct) > 1:
            raise DataError(
                f"request `{request}`: rows of one user are expected. Received: users {', '.join(distinct[:3])}. "
                "Make request ids unique, or group by user as well."
            )

    _ = (
        log
        | "RequestUser" >> beam.MapTuple(lambda user, row: (row[2][place], user))
        | beam.Distinct()
        | "UsersOfRequest" >> beam.GroupByKey()
        | "OneUserARequest" >> beam.MapTuple(single_user)
    )


class _BuildRequests(beam.DoFn):
    """One user's rows -> requests as (id, (split, parts)); a request above `max_candidates` has several parts."""

    def __init__(self, spec: RankingSpec, sources: Sources, for_aggregates: bool, requests: bool):
        self._spec_json = spec.to_json()
        self._sources = sources
        self._for_aggregates = for_aggregates
        self._requests = requests

    def setup(self) -> None:
        spec = parse_spec(self._spec_json)
        self._builder = RequestBuilder(spec, self._sources)
        self._counter = AggregateCounter(spec, self._builder) if self._for_aggregates else None

    def process(self, element: Any, items: dict[str, tuple[str, ...]]) -> Iterator[Any]:
        key, grouped = element
        rows = self._rows(key, grouped["log"])
        if not rows and self._counter is None:
            return
        counts: Counter[str] = Counter()
        tables: dict[str, dict[str, str] | None] = {"user": None, "past": None}
        for name in tables:
            if found := list(grouped.get(name, ())):
                tables[name] = dict(zip(self._sources.columns[name], _single_row(key, found)[1], strict=True))
        columns = self._sources.columns["item"]

        def find_item(item: str) -> dict[str, str] | None:
            return dict(zip(columns, items[item], strict=True)) if item in items else None

        impressions = self._builder.read(rows, find_item, counts)
        if self._counter is not None:
            for place, added in self._counter.count(impressions, tables["user"], tables["past"], find_item).items():
                yield beam.pvalue.TaggedOutput(EVENTS, (place, tuple(added)))
        if not rows or not self._requests:
            return
        if "user" in grouped:
            counts["users"] += 1
        if self._sources.files["user"] and tables["user"] is None:
            counts["users_without_table_row"] += 1
        built = self._builder.build(impressions, tables["user"], tables["past"], find_item, counts)
        for (request, split), parts in groupby(
            built, key=lambda part: (part[1][request_example.REQUEST_ID][0], part[0])
        ):
            yield request, (split, [values for _, values in parts])
        for name, count in counts.items():
            yield beam.pvalue.TaggedOutput(COUNTS, (name, count))

    def _rows(self, key: str, grouped: Iterable[tuple]) -> list[Row]:
        limit = self._builder.spec.data.max_user_rows
        rows = [Row(*row) for row in itertools.islice(grouped, limit + 1)]
        if len(rows) > limit:
            raise DataError(
                f"user `{key}`: at most {limit:,} rows in the log are expected (data.max_user_rows). Received: more, "
                f"{rows[0].origin} is one. Remove the user, who may be a robot, or raise the limit."
            )
        return rows


class _Encode(beam.DoFn):
    """Requests -> serialized examples, tagged by split; the parts of one stand behind one another."""

    def process(self, element: Any) -> Iterator[Any]:
        _, (split, parts) = element
        for values in parts:
            yield beam.pvalue.TaggedOutput(split, request_example.encode(values).SerializeToString(deterministic=True))
