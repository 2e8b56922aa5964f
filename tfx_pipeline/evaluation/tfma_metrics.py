"""The metrics of `trainer.metrics.ranking_metrics` in TFMA, and the gate that a model must pass.

TFMA gathers the labelled rows of a slice once for each task and model, and all metrics are derived from them: exact,
and the same numbers as in training. A row takes 20 bytes, so the overall slice of ten million candidates, four tasks
and two models takes 1.6 GB on the worker that finishes it, and each further slicing spec as much again, spread over its
slices. Evaluate a sample of the requests when that is too much.

The metrics read the rows that `tfx_pipeline.evaluation.extractors` makes of requests, and fail without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.metrics import metric_types, metric_util

from tfx_pipeline.evaluation.extractors import GROUP_KEY
from trainer.metrics import ranking_metrics
from trainer.metrics.ranking_metrics import Rows
from transform.spec.metric_table import find_metric

GATE_PREFIX = "gate_"
"""What the names of gates begin with in TFMA's results."""

_NO_ROWS = Rows(*(np.zeros(0, dtype) for dtype in (np.float32, np.float32, np.int64, np.float32)))

# Small parts cost more than the rows in them, and merging at each step would copy all rows again and again.
_MAX_PARTS = 256


class RowMetric(metric_types.Metric):
    """A metric of `transform.spec.metric_table`, or of the user's own, over the labelled candidates of a slice.

    Args:
        metric: str. A name that `find_metric` knows.
        name: str. What the result is called. Defaults to `metric`.
    """

    def __init__(self, metric: str, name: str = ""):
        super().__init__(
            derived_from_rows(partial(ranking_metrics.compute, metric)), metric=metric, name=name or metric
        )


class Gate(metric_types.Metric):
    """The value that decides whether a model is pushed: a metric, once it rests on enough positives.

    On fewer than `min_positives` positives every model gets the best value of the metric, which passes any bound and
    shows no change: the task is reported and not gated. Scores that are not finite are NaN all the same, and NaN fails:
    no comparison with it is true.

    Args:
        metric: str. A name that `find_metric` knows.
        min_positives: int. The smallest number of positives that a model is judged by.
        implementation: str. Not used: it names the version of the code that evaluates, so that TFX's cache, which
            knows an evaluation by its configuration alone, sees a change of the code.
        name: str. What the result is called. Defaults to `GATE_PREFIX` and the metric.
    """

    def __init__(self, metric: str, min_positives: int, implementation: str = "", name: str = ""):
        super().__init__(
            derived_from_rows(partial(gate_value, metric, min_positives)),
            metric=metric,
            min_positives=min_positives,
            implementation=implementation,
            name=name or GATE_PREFIX + metric,
        )


def gate_value(metric: str, min_positives: int, rows: Rows) -> float:
    """What a gate sees: the metric, or its best value while there are fewer positives than `min_positives`."""
    if ranking_metrics.positive_count(rows.labels) < min_positives and np.isfinite(rows.scores).all():
        return find_metric(metric).best
    return ranking_metrics.compute(metric, rows)


def derived_from_rows(
    value: Callable[[Rows], Any], key_type: type[metric_types.MetricKey] = metric_types.MetricKey
) -> Callable[..., metric_types.MetricComputations]:
    """Makes TFMA's computations of a value of the rows; of equal computations of rows TFMA runs one.

    Args:
        value: callable. What is made of the labelled rows of a slice: a number, or a plot.
        key_type: type. `MetricKey` for a number, `PlotKey` for a plot. Defaults to `MetricKey`.

    Returns:
        What a TFMA metric is made with.
    """

    def create(
        name: str, model_name: str, output_name: str, example_weighted: bool, **_: Any
    ) -> metric_types.MetricComputations:
        of = {"model_name": model_name, "output_name": output_name, "example_weighted": example_weighted}
        rows_key, key = metric_types.MetricKey("_rows", **of), key_type(name, **of)
        gather = metric_types.MetricComputation(
            keys=[rows_key],
            preprocessors=[metric_types.FeaturePreprocessor(feature_keys=[GROUP_KEY])],
            combiner=_GatherRows(rows_key),
        )
        result = partial(_derive, value, rows_key, key)
        return [gather, metric_types.DerivedMetricComputation(keys=[key], result=result)]

    return metric_util.merge_per_key_computations(create)


def _derive(
    value: Callable[[Rows], Any],
    rows_key: metric_types.MetricKey,
    key: metric_types.MetricKey,
    results: dict[metric_types.MetricKey, Any],
) -> dict[metric_types.MetricKey, Any]:
    return {key: value(results[rows_key])}


class _GatherRows(beam.CombineFn):
    """Collects the labelled rows of one task and one model."""

    def __init__(self, key: metric_types.MetricKey):
        self._key = key

    def create_accumulator(self) -> list[Rows]:
        return [_NO_ROWS]

    def add_input(self, accumulator: list[Rows], element: metric_types.StandardMetricInputs) -> list[Rows]:
        inputs = metric_util.to_label_prediction_example_weight(
            element,
            model_name=self._key.model_name,
            output_name=self._key.output_name,
            example_weighted=self._key.example_weighted,
            flatten=False,
            squeeze=False,
        )
        groups = element[constants.FEATURES_KEY][GROUP_KEY]
        for labels, scores, weights in inputs:
            columns = (labels, scores, np.broadcast_to(weights, np.shape(labels)))
            labels, scores, weights = (column.astype(np.float32) for column in columns)
            accumulator.append(Rows.observed(labels, scores, groups, weights))
        return self.compact(accumulator) if len(accumulator) > _MAX_PARTS else accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Rows]]) -> list[Rows]:
        return self.compact([part for accumulator in accumulators for part in accumulator])

    def compact(self, accumulator: list[Rows]) -> list[Rows]:
        return [Rows.concatenate(accumulator)]

    def extract_output(self, accumulator: list[Rows]) -> dict[metric_types.MetricKey, Rows]:
        return {self._key: Rows.concatenate(accumulator)}
