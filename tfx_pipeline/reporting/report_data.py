"""What a report and a model card say of a finished run, gathered from the run's artifacts."""

from __future__ import annotations

import datetime
import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx.components.evaluator import constants
from tfx.types import artifact_utils
from tfx.utils import path_utils

from serving.export.exporter import load_exported_spec
from tfx_pipeline.components.anomaly_gate import read_anomalies
from tfx_pipeline.components.impression_example_gen import COUNTS_FILE
from tfx_pipeline.components.label_statistics import LABEL_STATISTICS_FILE
from tfx_pipeline.components.serving_validator import load_serving_report
from tfx_pipeline.evaluation.eval_config import (
    EvaluationMetrics,
    Failure,
    NotGated,
    TaskGate,
    load_failures,
    load_gates,
    load_metric_names,
    load_metrics,
    load_not_gated,
)
from tfx_pipeline.evaluation.tfma_plots import EvaluationCurves, load_curves
from tfx_pipeline.metadata.runs import Run
from tfx_pipeline.topology import RESOLVER_ID
from transform.errors import PipelineError
from transform.features.request_example import CANDIDATE_COUNT, REQUEST_TIME, label_key, sequence_key, weight_key
from transform.spec.ranking_spec import RankingSpec

TRAINING_FILE, GRADIENTS_FILE, LOGS = "training.json", "gradients.json", "logs"
LOSS_TAG = "train/loss"

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class LengthFacts:
    """How long a list is over the examples of a split.

    Attributes:
        empty: float. The share of examples where it is empty.
        mean: float. With the empty ones as 0.
        quantiles: dict. Length by share of examples, 0.1 to 0.9; approximate, as TFDV keeps ten buckets.
        longest: int.
    """

    empty: float
    mean: float
    quantiles: dict[float, float]
    longest: int


@dataclass(frozen=True)
class SplitFacts:
    """One split of the examples, counted by TFDV; its requests by the ExampleGen.

    Attributes:
        requests: int.
        examples: int. More than requests where some hold more than `max_candidates` and were split.
        impressions: int.
        first, last: datetime or None. The first and last request, UTC; None when there are no requests.
        labelled: dict. Candidates with a label, by task.
        positives: dict. Positives by task.
        candidates: LengthFacts. Candidates an example.
        sequences: dict. Events an example, by sequence.
    """

    requests: int
    examples: int
    impressions: int
    first: datetime.datetime | None
    last: datetime.datetime | None
    labelled: dict[str, int]
    positives: dict[str, int]
    candidates: LengthFacts
    sequences: dict[str, LengthFacts]


@dataclass(frozen=True)
class Losses:
    """A task's training loss, as the Trainer wrote it to TensorBoard: columns of equal length."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class RunData:
    """A finished run.

    Attributes:
        run: Run.
        spec: RankingSpec. As the model was trained; what it was evaluated by is in `gates` and `metric_names`.
        blessed: bool. By its metrics.
        serving: dict or None. What came of serving it, `serving_validation.ServingReport` and `blessed`; None where it
            was not tried.
        pushed: str. Where the model was pushed; "" when it was not.
        model: str. The model's folder.
        baseline: str. The folder of the blessed model it was compared with; "" when there was none.
        metrics: EvaluationMetrics.
        metric_names: list of str. In the order of the spec.
        curves: EvaluationCurves.
        gates: dict. By task.
        failures: list of Failure.
        not_gated: dict. By task.
        base_rates: dict. The share of positives on the test split by task, weighted as metrics are.
        popularity: dict. What a ranker by popularity reaches, by task and metric.
        counts: dict. What the ExampleGen counted.
        splits: dict. SplitFacts by split.
        anomalies: list of str.
        training: dict or None. `best_epoch` and `epochs`, as the Trainer wrote them; None when they are missing.
        losses: dict. Training losses by task, from TensorBoard; empty when they are missing.
        gradients: list. What `trainer.training.gradient_probe.GradientProbe` measured; empty when nothing was.
    """

    run: Run
    spec: RankingSpec
    blessed: bool
    serving: dict[str, Any] | None
    pushed: str
    model: str
    baseline: str
    metrics: EvaluationMetrics
    metric_names: list[str]
    curves: EvaluationCurves
    gates: dict[str, TaskGate]
    failures: list[Failure]
    not_gated: dict[str, NotGated]
    base_rates: dict[str, float]
    popularity: dict[str, dict[str, float]]
    counts: dict[str, int]
    splits: dict[str, SplitFacts]
    anomalies: list[str]
    training: dict[str, Any] | None
    losses: dict[str, Losses]
    gradients: list[dict[str, Any]]

    @property
    def servable(self) -> bool:
        """Whether the model could be served, as far as that was tried."""
        return self.serving is None or self.serving["blessed"]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the spec."""
        return self.spec.task_names

    def value(self, task: str, metric: str, place: tuple = ()) -> float:
        """A metric of the evaluated model on a slice, NaN where it was not measured."""
        return self.metrics.candidate.get(place, {}).get(task, {}).get(metric, math.nan)

    def change(self, task: str, metric: str, place: tuple = ()) -> float:
        """The metric's change against the blessed model on a slice, NaN where there is none."""
        return self.metrics.change.get(place, {}).get(task, {}).get(metric, math.nan)


def collect(run: Run) -> RunData:
    """Reads the artifacts of a run.

    What the Trainer writes for people (`training.json`, `gradients.json`, TensorBoard) may be missing: it stays empty.

    Args:
        run: Run.

    Returns:
        Its facts.

    Raises:
        PipelineError: when the run came to no evaluation, or its artifacts are gone.
    """
    unfinished = [node for node in ("Evaluator", "LabelStatistics", "AtomicPusher") if node not in run.components]
    unfinished += [node for node, component in run.components.items() if not component.finished]
    if unfinished:
        raise PipelineError(
            f"run {run.id}: a finished run is expected. Received: one that stopped before {unfinished[0]} was done. "
            "Read its log (in the output folder's `logs`, or the task's in Airflow), and run the pipeline again."
        )
    try:
        return _collect(run)
    except (OSError, tf.errors.NotFoundError) as error:
        raise PipelineError(
            f"run {run.id}: the artifacts that ML Metadata knows of are expected. Received: {error}. "
            "They were moved or deleted: choose another run."
        ) from error


def _collect(run: Run) -> RunData:
    uri = run.uri
    evaluation, model, model_run = uri("Evaluator", "evaluation"), uri("Trainer", "model"), uri("Trainer", "model_run")
    if not tf.io.gfile.exists(evaluation):
        raise FileNotFoundError(evaluation)
    spec = load_exported_spec(path_utils.serving_model_path(model))
    label_statistics = _read_json(os.path.join(uri("LabelStatistics", "label_statistics"), LABEL_STATISTICS_FILE))
    counts = _read_json(os.path.join(uri("ImpressionExampleGen", "examples"), COUNTS_FILE))
    blessing = run.components["Evaluator"].output("blessing")
    pushed = run.components["AtomicPusher"].output("pushed_model")
    return RunData(
        run=run,
        spec=spec,
        blessed=blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == 1,
        serving=_serving(run),
        pushed=pushed.get_string_custom_property("pushed_destination"),
        model=model,
        baseline=_baseline(run),
        metrics=load_metrics(evaluation),
        metric_names=load_metric_names(evaluation),
        curves=load_curves(evaluation),
        gates={gate.task: gate for gate in load_gates(evaluation)},
        failures=load_failures(evaluation),
        not_gated={not_gated.task: not_gated for not_gated in load_not_gated(evaluation)},
        base_rates={task: of_task["base_rate"] for task, of_task in label_statistics.items()},
        popularity={task: of_task.get("popularity", {}) for task, of_task in label_statistics.items()},
        counts=counts,
        splits=_splits(spec, counts, run),
        anomalies=read_anomalies(run.components["ExampleValidator"].output("anomalies")),
        training=_read_json_if_there(os.path.join(model_run, TRAINING_FILE)),
        losses=_losses(os.path.join(model_run, LOGS), spec.task_names),
        gradients=_read_json_if_there(os.path.join(model_run, GRADIENTS_FILE)) or [],
    )


def _baseline(run: Run) -> str:
    resolved = run.components.get(RESOLVER_ID)
    models = resolved.outputs.get("model", []) if resolved else []
    return models[0].uri if models else ""


def _serving(run: Run) -> dict[str, Any] | None:
    if "ServingValidator" not in run.components:
        return None
    return load_serving_report(run.uri("ServingValidator", "blessing"))


# === Data ===


def _splits(spec: RankingSpec, counts: dict[str, int], run: Run) -> dict[str, SplitFacts]:
    artifact = run.components["StatisticsGen"].output("statistics")
    facts = {}
    for split in artifact_utils.decode_split_names(artifact.split_names):
        path = os.path.join(artifact_utils.get_split_uri([artifact], split), "FeatureStats.pb")
        with tf.io.gfile.GFile(path, "rb") as file:
            (dataset,) = statistics_pb2.DatasetFeatureStatisticsList.FromString(file.read()).datasets
        facts[split] = _split_facts(spec, counts.get(f"{split}_requests", 0), dataset)
    return facts


def _split_facts(spec: RankingSpec, requests: int, dataset: statistics_pb2.DatasetFeatureStatistics) -> SplitFacts:
    features = {feature.path.step[0]: feature for feature in dataset.features}
    examples = int(dataset.num_examples)

    def total(key: str) -> int:
        """The sum of a numeric feature's values."""
        numbers = features[key].num_stats
        return round(numbers.mean * numbers.common_stats.tot_num_values)

    def not_zero(key: str) -> int:
        numbers = features[key].num_stats
        return numbers.common_stats.tot_num_values - numbers.num_zeros

    def lengths(key: str) -> LengthFacts:
        feature = features[key]
        common = (feature.num_stats if feature.HasField("num_stats") else feature.string_stats).common_stats
        return _lengths(common.num_non_missing, examples, common.tot_num_values, common.num_values_histogram.buckets)

    times = features[REQUEST_TIME].num_stats if REQUEST_TIME in features else None
    return SplitFacts(
        requests=requests,
        examples=examples,
        impressions=total(CANDIDATE_COUNT),
        first=_time(times.min) if times else None,
        last=_time(times.max) if times else None,
        labelled={task: not_zero(weight_key(task)) for task in spec.task_names},
        positives={task: total(label_key(task)) for task in spec.task_names},
        candidates=lengths(label_key(spec.task_names[0])),
        sequences={
            sequence.name: lengths(sequence_key(sequence.name, sequence.features[0]))
            for sequence in spec.sequences
            if sequence_key(sequence.name, sequence.features[0]) in features
        },
    )


def _lengths(present: int, examples: int, values: int, buckets: Any) -> LengthFacts:
    """Quantiles over all examples: those where the list is empty come first, the histogram holds the others."""
    bounds = np.array([0.0, *(bucket.high_value for bucket in buckets)])
    shares = np.cumsum([examples - present, *(bucket.sample_count for bucket in buckets)]) / max(examples, 1)
    index = np.searchsorted(shares, _QUANTILES).clip(max=len(bounds) - 1)
    quantiles = dict(zip(_QUANTILES, bounds[index].tolist(), strict=True))
    return LengthFacts(1 - present / max(examples, 1), values / max(examples, 1), quantiles, int(bounds.max()))


def _time(milliseconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.timezone.utc)


# === Training ===


def _losses(folder: str, tasks: tuple[str, ...]) -> dict[str, Losses]:
    """The tasks' losses in TensorBoard's files."""
    losses = {task: Losses([], []) for task in tasks}
    for path in sorted(tf.io.gfile.glob(os.path.join(folder, "events.*"))):
        for record in tf.data.TFRecordDataset(path):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                task = value.tag.removeprefix(f"{LOSS_TAG}/")
                if task in losses and task != value.tag:
                    losses[task].steps.append(event.step)
                    losses[task].values.append(float(tf.make_ndarray(value.tensor)))
    return {task: loss for task, loss in losses.items() if loss.steps}


def _read_json(path: str) -> Any:
    with tf.io.gfile.GFile(path) as file:
        return json.loads(file.read())


def _read_json_if_there(path: str) -> Any:
    return _read_json(path) if tf.io.gfile.exists(path) else None
