"""LabelStatistics: what a ranker that knows no user reaches on the test split."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.experimental import simple_artifacts

from trainer.metrics.ranking_metrics import Rows, compute
from transform.features import request_example as request_examples
from transform.spec.loading import parse_spec

LABEL_STATISTICS_FILE = "label_statistics.json"
SMOOTHING = 20.0  # impressions of the mean rate that every item is given before its own
POPULARITY_METRICS = ("auc", "gauc")


@component(use_beam=True)
def LabelStatistics(  # noqa: N802
    examples: InputArtifact[standard_artifacts.Examples],
    label_statistics: OutputArtifact[simple_artifacts.Metrics],
    spec: Parameter[str],
    code: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Base rates of the test split, and item popularity (the smoothed train rate of item x task) as a score.

    Writes `label_statistics.json`: per task `impressions`, `positives`, `base_rate` and, when the spec names the item,
    `popularity` with AUC and GAUC.

    Args:
        examples: request examples with the splits train and test.
        label_statistics: the folder of the result.
        spec: the data part of the spec as JSON.
        code: a hash of this code, for the cache.
        beam_pipeline: given by TFX.
    """
    del code
    ranking = parse_spec(spec)
    item, tasks = ranking.item_feature, ranking.task_names
    with beam_pipeline as pipeline:
        train, test = (
            pipeline
            | f"Read[{split}]"
            >> beam.io.ReadFromTFRecord(os.path.join(artifact_utils.get_split_uri([examples], split), "*.gz"))
            | f"Candidates[{split}]" >> beam.FlatMap(_candidates, item, tasks)
            for split in ("train", "test")
        )
        rates = (
            train
            | beam.MapTuple(lambda _, item_id, labels: (item_id, labels))
            | "SumOfItem" >> beam.CombinePerKey(_sum_columns)
        )
        _ = (
            test
            | "TestRows" >> beam.combiners.ToList()
            | "Evaluate" >> beam.Map(_evaluate, beam.pvalue.AsDict(rates), tasks, item is not None)
            | "Write" >> beam.Map(_write, os.path.join(label_statistics.uri, LABEL_STATISTICS_FILE))
        )


def _candidates(serialized: bytes, item: str | None, tasks: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """(request, item, weights [2, K] of positives and of labels) of every candidate."""
    values = request_examples.decode(serialized)
    labels, weights = (
        np.array([values[key(task)] for task in tasks], "float32")
        for key in (request_examples.label_key, request_examples.weight_key)
    )
    counts = np.stack([labels * weights, weights])  # [2, K, N]
    for n in range(counts.shape[2]):
        yield values[request_examples.REQUEST_ID][0], values[item][n] if item else "", counts[:, :, n].tolist()


def _sum_columns(counts: Iterable[Any]) -> Any:
    return np.sum([np.asarray(count) for count in counts], axis=0).tolist()


def _evaluate(rows: list[Any], rates: dict[str, Any], tasks: tuple[str, ...], has_item: bool) -> dict[str, Any]:
    known = {item: np.asarray(counts) for item, counts in rates.items()}
    positives, seen = sum(known.values(), np.zeros((2, len(tasks))))
    mean = positives / np.maximum(seen, 1)
    unknown = np.zeros((2, len(tasks)))
    counts = np.array([known.get(item, unknown) for _, item, _ in rows]).reshape(-1, 2, len(tasks))
    scores = (counts[:, 0] + SMOOTHING * mean) / (counts[:, 1] + SMOOTHING)
    targets = np.array([target for _, _, target in rows]).reshape(-1, 2, len(tasks))
    requests = np.array([request for request, _, _ in rows])
    result: dict[str, Any] = {}
    for k, task in enumerate(tasks):
        labels = (targets[:, 0, k] > 0).astype("float32")
        observed = Rows.observed(labels, scores[:, k], requests, targets[:, 1, k])
        result[task] = {
            "impressions": len(observed.labels),
            "positives": int(observed.labels.sum()),
            "base_rate": float(targets[:, 0, k].sum() / targets[:, 1, k].sum()) if len(observed) else float("nan"),
        }
        if has_item:
            result[task]["popularity"] = {name: float(compute(name, observed)) for name in POPULARITY_METRICS}
    return result


def _write(content: dict[str, Any], path: str) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(content, indent=1))
