"""Curves of each task in TFMA: ROC, calibration and the distribution of scores.

They are derived from the rows that the metrics of `tfx_pipeline.evaluation.tfma_metrics` gather, so they cost no second
pass, and are TFMA's own plots: `tfma.load_plots` and `tfma.view.render_plot` read them too. Each slice has its own; a
slice of few rows has few points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import metrics_for_slice_pb2 as protos

from tfx_pipeline.evaluation.tfma_metrics import derived_from_rows
from trainer.metrics.ranking_metrics import Array, Rows

# TFMA draws a plot by these names itself.
ROC, CALIBRATION, SCORES = "confusion_matrix_plot", "calibration_plot", "score_distribution"

_ROC_POINTS = 100
_CALIBRATION_BUCKETS = 10
_POSITIVES_A_BUCKET = 10  # on average; fewer say little about a rate

# The bounds are fixed, so that distributions of other days and models compare: a quarter in log-odds is a bin.
_SCORE_BOUNDS = 1 / (1 + np.exp(-np.arange(-16, 16.25, 0.25)))


class RowPlot(metric_types.Metric):
    """A plot over the labelled candidates of a slice.

    Args:
        plot: str. `confusion_matrix_plot`, `calibration_plot` or `score_distribution`.
        name: str. What the result is called. Defaults to `plot`.
    """

    def __init__(self, plot: str, name: str = ""):
        super().__init__(derived_from_rows(PLOTS[plot], metric_types.PlotKey), plot=plot, name=name or plot)


# === From rows to TFMA's messages ===


def roc(rows: Rows) -> protos.ConfusionMatrixAtThresholds:
    """Points of the exact ROC curve: all its corners, or a hundred that lie evenly along it.

    Args:
        rows: Rows.

    Returns:
        Weights at falling thresholds; a row is called positive when its score reaches the threshold. No points when
        positives or negatives are missing or a score is not finite.
    """
    result = protos.ConfusionMatrixAtThresholds()
    of_class = rows.weights * np.stack([rows.labels > 0.5, rows.labels <= 0.5]).astype(np.float64)
    positives, negatives = of_class.sum(axis=1)
    if not positives or not negatives or not np.isfinite(rows.scores).all():
        return result
    order = np.argsort(-rows.scores, kind="stable")
    scores = rows.scores[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # of each run of equal scores
    true, false = (np.append(0.0, np.cumsum(weights[order])[last]) for weights in of_class)
    thresholds = np.append(np.inf, scores[last])
    way = false / negatives + true / positives  # rises from 0 to 2
    kept = np.unique(np.searchsorted(way, np.linspace(0, 2, _ROC_POINTS).clip(max=way[-1])))
    for index in kept[_corners(false[kept], true[kept])]:
        tp, fp = true[index], false[index]
        result.matrices.add(
            threshold=thresholds[index],
            true_positives=tp,
            false_positives=fp,
            false_negatives=positives - tp,
            true_negatives=negatives - fp,
            precision=tp / (tp + fp) if index else 1.0,
            recall=tp / positives,
            false_positive_rate=fp / negatives,
        )
    return result


def calibration_buckets(rows: Rows) -> protos.CalibrationHistogramBuckets:
    """Buckets of equally many rows by rising score: ten, or fewer so that a bucket has ten positives on average."""
    if not len(rows) or not np.isfinite(rows.scores).all():
        return protos.CalibrationHistogramBuckets()
    wanted = int(np.clip(np.count_nonzero(rows.labels > 0.5) // _POSITIVES_A_BUCKET, 1, _CALIBRATION_BUCKETS))
    inner = np.quantile(rows.scores, np.arange(1, wanted) / wanted, method="lower")
    return _histogram(rows, np.unique(np.concatenate([[0.0], inner, [np.nextafter(1.0, 2)]])))


def score_distribution(rows: Rows) -> protos.CalibrationHistogramBuckets:
    """The weight of rows, and of positives among them, with a score in each of the fixed bins; empty ends are cut."""
    if not len(rows) or not np.isfinite(rows.scores).all():
        return protos.CalibrationHistogramBuckets()
    used = np.digitize([rows.scores.min(), rows.scores.max()], _SCORE_BOUNDS)
    bounds = np.concatenate([[0.0], _SCORE_BOUNDS, [np.nextafter(1.0, 2)]])
    return _histogram(rows, bounds[used[0] : used[1] + 2])


PLOTS: dict[str, Callable[[Rows], Any]] = {ROC: roc, CALIBRATION: calibration_buckets, SCORES: score_distribution}


def _corners(x: Array, y: Array) -> Array:
    """Which points of a monotone curve are not inside a level or upright stretch of it."""
    level = (np.diff(y) == 0) | (np.diff(x) == 0)
    same_way = level[1:] & level[:-1] & ((np.diff(y)[1:] == 0) == (np.diff(y)[:-1] == 0))
    return np.flatnonzero(~np.concatenate([[False], same_way, [False]]))


def _histogram(rows: Rows, bounds: Array) -> protos.CalibrationHistogramBuckets:
    bucket = np.digitize(rows.scores, bounds[1:-1])
    count = len(bounds) - 1
    # Weights that add up to the effective number of rows (Kish), which intervals of rates rest on.
    weights = rows.weights * (rows.weights.sum() / np.square(rows.weights).sum())
    weighted = [weights * values for values in (1.0, rows.labels > 0.5, rows.scores)]
    sums = [np.bincount(bucket, values, count) for values in weighted]
    result = protos.CalibrationHistogramBuckets()
    for index, (examples, positives, scores) in enumerate(zip(*sums, strict=True)):
        added = result.buckets.add(lower_threshold_inclusive=bounds[index], upper_threshold_exclusive=bounds[index + 1])
        added.num_weighted_examples.value = examples
        added.total_weighted_label.value = positives
        added.total_weighted_refined_prediction.value = scores
    return result


# === Reading ===


@dataclass
class Curves:
    """The plots of one task and model on the overall slice, as columns; empty where there was nothing to draw.

    Attributes:
        false_positive_rate: array [points], rising.
        recall: array [points]. The true positive rate.
        calibration: array [buckets, 3]. Rows, positives and the sum of scores.
        scores: array [bins, 4]. Lower and upper bound of the score, rows and positives.
    """

    false_positive_rate: Array = field(default_factory=lambda: np.zeros(0))
    recall: Array = field(default_factory=lambda: np.zeros(0))
    calibration: Array = field(default_factory=lambda: np.zeros((0, 3)))
    scores: Array = field(default_factory=lambda: np.zeros((0, 4)))


@dataclass(frozen=True)
class EvaluationCurves:
    """Curves by task of the evaluated model, and of the blessed model it was compared with."""

    candidate: dict[str, Curves]
    baseline: dict[str, Curves]


def load_curves(path: str) -> EvaluationCurves:
    """Reads the plots of the overall slice in an Evaluator's output folder.

    Args:
        path: str. The folder.

    Returns:
        The curves; no tasks when the evaluation drew none.
    """
    curves = EvaluationCurves({}, {})
    for record in tfma.load_plots(path):
        if record.slice_key.single_slice_keys:
            continue
        for item in record.plot_keys_and_values:
            of_model = curves.baseline if item.key.model_name == tfma.BASELINE_KEY else curves.candidate
            of_task = of_model.setdefault(item.key.output_name, Curves())
            buckets = item.value.calibration_histogram_buckets.buckets
            if item.key.name == SCORES:
                of_task.scores = np.array(
                    [[b.lower_threshold_inclusive, b.upper_threshold_exclusive, *_sums(b)[:2]] for b in buckets]
                ).reshape(-1, 4)
                continue
            of_task.calibration = np.array([_sums(bucket) for bucket in buckets]).reshape(-1, 3)
            matrices = item.value.confusion_matrix_at_thresholds.matrices
            of_task.false_positive_rate = np.array([m.false_positive_rate for m in matrices])
            of_task.recall = np.array([m.recall for m in matrices])
    return curves


def _sums(bucket: Any) -> tuple[float, float, float]:
    return (
        bucket.num_weighted_examples.value,
        bucket.total_weighted_label.value,
        bucket.total_weighted_refined_prediction.value,
    )
