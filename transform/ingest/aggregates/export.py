"""Aggregate features as tables for a feature store: `onerank aggregates --help`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

from transform.environment import prepare_environment
from transform.extras import require_extra

prepare_environment()
require_extra("train", "transform.ingest.aggregates.export", "apache_beam", "pyarrow", "tensorflow")

import apache_beam as beam
import pyarrow.parquet
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems

from transform.errors import DataError, find_user_error, reports_user_errors
from transform.ingest.aggregates.beam_join import MANIFEST, KeyCounts, described, overall_timeline, table_file
from transform.ingest.aggregates.counter import OVERALL, AggregateColumns, Timeline
from transform.ingest.beam_requests import AggregateEvents
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Writes the tables; returns 1 when the user has something to correct."""
    parser = argparse.ArgumentParser(
        prog="onerank aggregates",
        description="Writes the aggregate features of a spec as of the day before a date: one Parquet file a key, with "
        "one more row, whose key is null, for all keys that are not in it.",
    )
    parser.add_argument("--spec", required=True, help="a ranking spec with a section `aggregates`")
    parser.add_argument("--data", required=True, help="the folder that the paths in the spec are relative to")
    parser.add_argument("--as_of", required=True, help="the requests' day, as 2022-05-06; not counted itself")
    parser.add_argument("--output", required=True, help="the folder to write; it must not be there yet")
    parser.add_argument("--beam_args", nargs="*", default=[], help="options of the Beam runner, as name=value")
    arguments = parser.parse_args(argv)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)  # it warns of things that a user can't change
    spec = load_spec(arguments.spec)
    rows = export_tables(
        spec, arguments.data, _date(arguments.as_of), arguments.output, [f"--{arg}" for arg in arguments.beam_args]
    )
    for path, count in rows.items():
        print(f"{path}: {count:,} rows")
    return 0


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise DataError(f"--as_of: a date is expected, as 2022-05-06. Received: `{text}`. Correct it.") from None


def export_tables(
    spec: RankingSpec, data_dir: str, as_of: date, output: str, beam_args: Sequence[str] = ()
) -> dict[str, int]:
    """Writes one table per key: what requests of the day `as_of` get.

    Args:
        spec: RankingSpec. With `aggregates`.
        data_dir: str. The folder that the spec's paths are relative to.
        as_of: date. A day in the time zone of the spec's blocks; nothing of it is counted.
        output: str. The folder to write. It appears whole or not at all.
        beam_args: sequence of str. Options of the Beam runner. Defaults to none.

    Returns:
        The number of rows by file.

    Raises:
        DataError: when there is nothing to count, the data do not fit the spec, or the folder is there already.
    """
    if not spec.aggregates:
        raise DataError(
            "aggregates: blocks with keys, tasks and windows are expected. Received: none. Add the section to the spec."
        )
    if tf.io.gfile.exists(output):
        raise DataError(f"--output: a folder that is not there yet is expected. Received: `{output}`. Give another.")
    events, aggregates = AggregateEvents(spec, data_dir), AggregateColumns(spec)
    unfinished = f"{output.rstrip('/')}.unfinished-{uuid.uuid4().hex[:8]}"
    try:
        tf.io.gfile.makedirs(unfinished)
        _write(aggregates, events, as_of.toordinal(), unfinished, beam_args)
        content = {"spec": spec.name, "as_of": as_of.isoformat(), "aggregates": described(spec)}
        with tf.io.gfile.GFile(os.path.join(unfinished, MANIFEST), "w") as file:
            file.write(json.dumps(content, indent=1, sort_keys=True))
        tf.io.gfile.rename(unfinished, output)
    except Exception as error:
        message = find_user_error(error)
        if message is None and isinstance(error, OSError | tf.errors.OpError):
            message = f"--output: a folder that can be written is expected. Received: {error}."
        if message is None:
            raise
        raise DataError(message) from error
    finally:
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.rmtree(unfinished)
    rows = {}
    for path in (table_file(output, key.parts) for key in aggregates.keys):
        with FileSystems.open(path) as file:
            rows[path] = pyarrow.parquet.read_metadata(file).num_rows
    return rows


def _write(
    aggregates: AggregateColumns, events: AggregateEvents, day: int, folder: str, beam_args: Sequence[str]
) -> None:
    with beam.Pipeline(argv=list(beam_args)) as pipeline:
        key_counts = pipeline | events | KeyCounts()
        overall = overall_timeline(key_counts, aggregates.width)
        rows = (
            key_counts
            | "Keys" >> beam.Filter(lambda pair: pair[0] != OVERALL)
            | "DaysOfKey" >> beam.GroupByKey()
            | "Rows" >> beam.FlatMap(lambda pair, of_all: _row(pair[0], pair[1], of_all, aggregates, day), overall)
        )
        unseen = (
            pipeline
            | "Unseen"
            >> beam.Create([(index, *(None for _ in key.parts)) for index, key in enumerate(aggregates.keys)])
            | "UnseenRows" >> beam.FlatMap(lambda key, of_all: _row(key, [], of_all, aggregates, day), overall)
        )
        for index, key in enumerate(aggregates.keys):
            columns = [(part, pyarrow.string()) for part in key.parts]
            columns += [(feature.name, pyarrow.float64()) for feature in key.features]
            _ = (
                (rows, unseen)
                | f"Both[{index}]" >> beam.Flatten()
                | f"OfKey[{index}]" >> beam.Filter(lambda pair, index=index: pair[0] == index)
                | f"Row[{index}]" >> beam.Values()
                | f"Write[{index}]"
                >> beam.io.WriteToParquet(
                    table_file(folder, key.parts).removesuffix(".parquet"),
                    pyarrow.schema(columns),
                    file_name_suffix=".parquet",
                    num_shards=1,
                    shard_name_template="",
                )
            )


def _row(
    key: tuple[Any, ...],
    by_day: Iterable[tuple[int, tuple[int, ...]]],
    overall: Timeline,
    aggregates: AggregateColumns,
    day: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The index and the table's row of a key; none for a key that was never seen before the day."""
    index, *parts = key
    before = [(of_day, counts) for of_day, counts in by_day if of_day < day]
    if before or None in parts:
        values = aggregates.values(index, Timeline(before, aggregates.width), overall, day)
        names = [feature.name for feature in aggregates.keys[index].features]
        numbers = {name: None if value != value else value for name, value in zip(names, values, strict=True)}
        yield index, {**dict(zip(aggregates.keys[index].parts, parts, strict=True)), **numbers}


if __name__ == "__main__":
    sys.exit(main())
