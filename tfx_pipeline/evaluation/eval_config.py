"""The Evaluator's configuration from the spec, and its results as plain objects."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2, metrics_for_slice_pb2, validation_result_pb2
from tensorflow_model_analysis.slicer import slicer_lib
from tensorflow_model_analysis.writers import eval_config_writer

from tfx_pipeline.evaluation import tfma_metrics, tfma_plots
from transform.features.request_example import label_key, weight_key
from transform.spec.metric_table import names_of
from transform.spec.model_sections import Gate
from transform.spec.ranking_spec import RankingSpec

SIGNATURE = "serving_default"

# Reported for every task beside the metrics of the spec: how the probabilities are, and what the numbers rest on.
_ALWAYS = (*names_of("always"), *names_of("count"))

Slice = tuple[tuple[str, str], ...]
"""The features of a slice and their values; () is the overall slice."""

Metrics = dict[Slice, dict[str, dict[str, float]]]
"""Values by slice, task and metric."""


# === Configuration ===


def eval_config(spec: RankingSpec, implementation: str) -> config_pb2.EvalConfig:
    """What TFX's Evaluator measures, on which slices, and what a model must reach to be blessed.

    Each task has a gate on the overall slice: a bound of its value, which a first model has to keep too, and a bound of
    its change against the blessed model.

    Args:
        spec: RankingSpec.
        implementation: str. A hash of the code that evaluates, so that TFX's cache sees that it changes.

    Returns:
        An EvalConfig for one model; TFX adds the baseline when there is one.
    """
    names = spec.task_names
    model = config_pb2.ModelSpec(
        signature_name=SIGNATURE,
        label_keys={task: label_key(task) for task in names},
        example_weight_keys={task: weight_key(task) for task in names},
    )
    slices = dict.fromkeys([(), *spec.evaluation.slices])
    return config_pb2.EvalConfig(
        model_specs=[model],
        slicing_specs=[config_pb2.SlicingSpec(feature_keys=keys) for keys in slices],
        metrics_specs=[_metrics_spec(spec, task, implementation) for task in names],
    )


def _metrics_spec(spec: RankingSpec, task: str, implementation: str) -> config_pb2.MetricsSpec:
    metrics = dict.fromkeys([*spec.evaluation.metrics, *_ALWAYS])
    return config_pb2.MetricsSpec(
        output_names=[task],
        metrics=[
            *(_metric_config(tfma_metrics.RowMetric, metric=metric) for metric in metrics),
            *(_metric_config(tfma_plots.RowPlot, plot=plot) for plot in tfma_plots.PLOTS),
            _gate_config(spec.evaluation.gate(task), implementation),
        ],
    )


def _gate_config(gate: Gate, implementation: str) -> config_pb2.MetricConfig:
    bound, tolerance = {"value": gate.bound}, {"value": -gate.tolerance if gate.higher_is_better else gate.tolerance}
    if gate.higher_is_better:
        value = config_pb2.GenericValueThreshold(lower_bound=bound)
        direction = config_pb2.MetricDirection.HIGHER_IS_BETTER
    else:
        value = config_pb2.GenericValueThreshold(upper_bound=bound)
        direction = config_pb2.MetricDirection.LOWER_IS_BETTER
    change = config_pb2.GenericChangeThreshold(absolute=tolerance, direction=direction)
    config = _metric_config(
        tfma_metrics.Gate, metric=gate.metric, min_positives=gate.min_positives, implementation=implementation
    )
    # A threshold without slices would hold for every slice, and a tiny one could block the model.
    config.per_slice_thresholds.add(
        slicing_specs=[config_pb2.SlicingSpec()],
        threshold=config_pb2.MetricThreshold(value_threshold=value, change_threshold=change),
    )
    return config


def _metric_config(metric_class: type, **config: Any) -> config_pb2.MetricConfig:
    return config_pb2.MetricConfig(
        class_name=metric_class.__name__, module=metric_class.__module__, config=json.dumps(config, sort_keys=True)
    )


# === Results ===


@dataclass(frozen=True)
class EvaluationMetrics:
    """What an evaluation measured.

    Args:
        candidate: dict. Values of the evaluated model by slice, task and metric.
        baseline: dict. The same of the blessed model it was compared with; empty when there was none.
        change: dict. Candidate minus baseline; empty when there was no baseline.
    """

    candidate: Metrics
    baseline: Metrics
    change: Metrics


@dataclass(frozen=True)
class Failure:
    """A gate that a model did not pass.

    Args:
        task: str.
        slice: tuple. () is the overall slice.
        metric: str. What the gate looks at.
        kind: str. `value` or `change`; `missing` when there was nothing to evaluate.
        bound: float. What the value or the change should keep to.
        received: float. The value or the change; NaN when it is undefined.
    """

    task: str
    slice: Slice
    metric: str
    kind: Literal["value", "change", "missing"]
    bound: float
    received: float

    def __str__(self) -> str:
        if self.kind == "missing":
            return f"{self.task}: nothing to evaluate"
        bound = f"{self.bound:+.4g}" if self.kind == "change" else f"{self.bound:.4g}"
        return f"{self.task}: {self.metric} {self.kind} {self.received:.4g}, bound {bound}"


@dataclass(frozen=True)
class NotGated:
    """A task that rests on too few positives to judge a model by.

    Args:
        task: str.
        metric: str. What the gate would look at.
        positives: int. Positives among the evaluated candidates.
        min_positives: int. The smallest number to judge by.
    """

    task: str
    metric: str
    positives: int
    min_positives: int

    def __str__(self) -> str:
        return f"{self.task}: {self.metric} not gated, {self.positives} < {self.min_positives} positives"


@dataclass(frozen=True)
class TaskGate:
    """The gate that a task was evaluated with.

    Args:
        task: str.
        metric: str. What the gate looks at.
        bound: float. What the value should keep to.
        tolerance: float or None. By how much the value may get worse against the blessed model; None when there was no
            such model.
        min_positives: int. The smallest number of positives to judge by.
    """

    task: str
    metric: str
    bound: float
    tolerance: float | None
    min_positives: int


def load_gates(path: str) -> list[TaskGate]:
    """Reads the gates from an Evaluator's output folder.

    Args:
        path: str. The folder.

    Returns:
        One gate per task, in the order of the spec.
    """
    gates = []
    for task, metric in _configured(path, tfma_metrics.Gate):
        settings, limits = json.loads(metric.config), metric.per_slice_thresholds[0].threshold
        bound = _bound(limits.value_threshold)
        compared = limits.HasField("change_threshold")  # TFX takes it away when there is no baseline
        tolerance = abs(limits.change_threshold.absolute.value) if compared else None
        gates.append(TaskGate(task, settings["metric"], bound, tolerance, settings["min_positives"]))
    return gates


def load_metric_names(path: str) -> list[str]:
    """Reads which metrics an evaluation measured from an Evaluator's output folder, in the order of the spec."""
    names = (json.loads(metric.config)["metric"] for _, metric in _configured(path, tfma_metrics.RowMetric))
    return list(dict.fromkeys(names))


def load_metrics(path: str) -> EvaluationMetrics:
    """Reads the metrics in an Evaluator's output folder.

    Args:
        path: str. The folder.

    Returns:
        The metrics of the candidate, of the baseline, and their differences.
    """
    metrics = EvaluationMetrics({}, {}, {})
    for record in tfma.load_metrics(path):
        place = _slice(record.slice_key)
        for item in record.metric_keys_and_values:
            key = item.key
            if key.name.startswith(tfma_metrics.GATE_PREFIX):
                continue
            of_model = metrics.baseline if key.model_name == tfma.BASELINE_KEY else metrics.candidate
            by_slice = metrics.change if key.is_diff else of_model
            by_slice.setdefault(place, {}).setdefault(key.output_name, {})[key.name] = item.value.double_value.value
    return metrics


def load_failures(path: str) -> list[Failure]:
    """Reads why a model was not blessed from an Evaluator's output folder.

    Args:
        path: str. The folder.

    Returns:
        The gates that the model did not pass; an empty list when it was blessed.
    """
    result = tfma.load_validation_result(path)
    failures = [
        _failure(_slice(validation.slice_key), failure)
        for validation in result.metric_validations_per_slice
        for failure in validation.failures
    ]
    if result.missing_slices:
        failures += [Failure(gate.task, (), gate.metric, "missing", math.nan, math.nan) for gate in load_gates(path)]
    return failures


def load_not_gated(path: str) -> list[NotGated]:
    """Reads which tasks had too few positives to be gated from an Evaluator's output folder.

    Args:
        path: str. The folder.

    Returns:
        Those tasks, in the order of the spec.
    """
    overall = load_metrics(path).candidate.get((), {})
    counted = [(gate, int(overall[gate.task]["positive_count"])) for gate in load_gates(path) if gate.task in overall]
    return [
        NotGated(gate.task, gate.metric, count, gate.min_positives)
        for gate, count in counted
        if count < gate.min_positives
    ]


def _configured(path: str, metric_class: type) -> list[tuple[str, config_pb2.MetricConfig]]:
    """Task and configuration of each metric of a class in an evaluation."""
    config, *_ = eval_config_writer.load_eval_run(path)
    return [
        (spec.output_names[0], metric)
        for spec in config.metrics_specs
        for metric in spec.metrics
        if metric.class_name == metric_class.__name__
    ]


def _bound(limits: config_pb2.GenericValueThreshold) -> float:
    return (limits.lower_bound if limits.HasField("lower_bound") else limits.upper_bound).value


def _failure(place: Slice, failure: validation_result_pb2.ValidationFailure) -> Failure:
    metric = failure.metric_key.name.removeprefix(tfma_metrics.GATE_PREFIX)
    received = failure.metric_value.double_value.value if failure.HasField("metric_value") else math.nan
    threshold = failure.metric_threshold
    kind: Literal["value", "change"] = "change" if threshold.HasField("change_threshold") else "value"
    if kind == "change":
        bound = threshold.change_threshold.absolute.value
    else:
        bound = _bound(threshold.value_threshold)
    return Failure(failure.metric_key.output_name, place, metric, kind, bound, received)


def _slice(key: metrics_for_slice_pb2.SliceKey) -> Slice:
    return tuple((name, str(value)) for name, value in slicer_lib.deserialize_slice_key(key))
