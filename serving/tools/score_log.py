"""Scores a log with an exported model: `onerank score --help`."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from transform.environment import prepare_environment
from transform.extras import require_extra

prepare_environment()
require_extra("train", "serving.tools.score_log", "apache_beam", "keras", "pyarrow", "rich", "tensorflow")

import apache_beam as beam
import numpy as np
import tensorflow as tf
from rich.progress import Progress

from serving.export.exporter import load_exported_spec, newest_version
from serving.export.signatures import SCORE, SERVING_DEFAULT
from transform.errors import DataError, find_user_error, reports_user_errors
from transform.features import request_example
from transform.features.batching import count_requests
from transform.ingest.aggregates.beam_join import NOTHING_COUNTED, OTHER_DAYS
from transform.ingest.beam_requests import COUNTS, RequestExamples, WriteCounts
from transform.ingest.request_builder import SCORING_SPLIT
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec

BATCH_REQUESTS = 256


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Scores every impression of a log and writes one row each.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    parser = argparse.ArgumentParser(
        prog="onerank score",
        description="Scores the impressions of a log with an exported model and writes a table, best score first in "
        "each request. The model brings its spec; the log needs no labels.",
    )
    parser.add_argument("--model", required=True, help="a version folder, or the folder that holds the versions")
    parser.add_argument("--data", required=True, help="the folder that the paths in the model's spec are relative to")
    parser.add_argument("--spec", help="another spec file for the paths (default: the model's own)")
    parser.add_argument(
        "--aggregates",
        help="a folder of `onerank aggregates` to take aggregate features from, as a server "
        "does (default: they are counted from the log as in training, which then has to hold the days before)",
    )
    parser.add_argument("--output", required=True, help="the .csv file to write")
    arguments = parser.parse_args(argv)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)  # it warns of things that a user can't change
    model_dir = newest_version(arguments.model)
    spec = load_exported_spec(model_dir)
    if arguments.spec:
        spec = spec.model_copy(update={"data": load_spec(arguments.spec).data})
    rows = score_log(spec, model_dir, arguments.data, arguments.output, arguments.aggregates)
    print(f"{rows:,} impressions scored with {model_dir}: {arguments.output}")
    return 0


def score_log(spec: RankingSpec, model_dir: str, data_dir: str, output: str, table: str | None = None) -> int:
    """Scores every impression of a log.

    Args:
        spec: RankingSpec. The model's.
        model_dir: str. An exported model.
        data_dir: str. The folder that the spec's paths are relative to.
        output: str. The csv file to write: `request_id`, the item's key or the candidate's position, a probability a
            task, the fused `score`, and `rank` within the request. It appears whole or not at all.
        table: str, optional. The folder of an exported table of aggregate features. Defaults to counting them from the
            log and the past, as of the day before each request.

    Returns:
        The number of rows.

    Raises:
        DataError: when the log does not fit the spec, or the file can't be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_requests(spec, data_dir, os.path.join(folder, "requests"), table)
        files = tf.io.gfile.glob(os.path.join(folder, "requests*"))
        signature = tf.saved_model.load(model_dir).signatures[SERVING_DEFAULT]
        unfinished = f"{output}.unfinished"
        rows = 0
        try:
            bar = Progress(transient=True, disable=not sys.stdout.isatty())
            with open(unfinished, "w", newline="", encoding="utf-8") as file, bar as progress:
                shown = progress.add_task("requests", total=count_requests(files))
                lines = csv.writer(file)
                lines.writerow(
                    [request_example.REQUEST_ID, spec.item_feature or "candidate", *spec.task_names, SCORE, "rank"]
                )
                candidates = _candidates(spec, files, signature, lambda n: progress.update(shown, advance=n))
                for _, parts in groupby(candidates, key=lambda candidate: candidate.request):
                    for row in _ranked(list(parts)):
                        lines.writerow(row)
                        rows += 1
            os.replace(unfinished, output)
        except OSError as error:
            raise DataError(f"--output: a file that can be written is expected. Received: {error}.") from error
        finally:
            if os.path.exists(unfinished):
                os.remove(unfinished)
    return rows


def _write_requests(spec: RankingSpec, data_dir: str, prefix: str, table: str | None) -> None:
    counts_path = os.path.join(os.path.dirname(prefix), "counts.json")
    try:
        with beam.Pipeline() as pipeline:
            requests = pipeline | RequestExamples(spec, data_dir, for_scoring=True, table=table)
            _ = requests[SCORING_SPLIT] | beam.io.WriteToTFRecord(prefix, file_name_suffix=".gz")
            _ = requests[COUNTS] | WriteCounts(counts_path)
    except Exception as error:
        message = find_user_error(error)
        if message is None:
            raise
        raise DataError(message) from error
    with open(counts_path, encoding="utf-8") as file:
        counts = json.load(file)
    notes = {
        OTHER_DAYS: f"requests are not of the day that the table in {table} is for",
        NOTHING_COUNTED: "requests have no day before them in the log to count: their rates are missing. "
        "Score them with --aggregates FOLDER, a table of the counts up to the day before",
    }
    for name, text in notes.items():
        if counts.get(name):
            print(f"note: {counts[name]:,} {text}", file=sys.stderr)


class _Candidate(NamedTuple):
    request: str
    item: str | None
    scores: list[float]  # a probability per task, then the fused score


def _candidates(
    spec: RankingSpec, files: Sequence[str], signature: Any, advance: Callable[[int], None]
) -> Iterator[_Candidate]:
    """All scored candidates. A request above `max_candidates` was written in parts, one right after the other."""
    item = spec.item_feature
    for batch in tf.data.TFRecordDataset(files, "GZIP").batch(BATCH_REQUESTS):
        outputs = signature(examples=batch)
        scores = np.stack([outputs[name].numpy() for name in (*spec.task_names, SCORE)], axis=-1)
        for index, request in enumerate(batch.numpy()):
            values = request_example.decode(request)
            for n in range(values[request_example.CANDIDATE_COUNT][0]):
                name = values[item][n] if item else None
                yield _Candidate(values[request_example.REQUEST_ID][0], name, scores[index, n].tolist())
        advance(len(batch))


def _ranked(candidates: list[_Candidate]) -> Iterator[list[Any]]:
    """The table's rows of a request, best score first."""
    best_first = np.argsort([-candidate.scores[-1] for candidate in candidates], kind="stable")
    for rank, n in enumerate(best_first, start=1):
        request, item, scores = candidates[n]
        yield [request, n if item is None else item, *(f"{score:.6f}" for score in scores), rank]


if __name__ == "__main__":
    sys.exit(main())
