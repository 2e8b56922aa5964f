"""The table at the end of a run: what was measured, what changed, what was blessed, where the model lies."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import tensorflow as tf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tfx.components.evaluator import constants

from tfx_pipeline.components.anomaly_gate import read_anomalies
from tfx_pipeline.components.impression_example_gen import COUNTS_FILE
from tfx_pipeline.components.label_statistics import LABEL_STATISTICS_FILE
from tfx_pipeline.components.serving_validator import load_serving_report
from tfx_pipeline.evaluation.eval_config import EvaluationMetrics, load_failures, load_metrics, load_not_gated
from tfx_pipeline.metadata.runs import ComponentRun
from transform.ingest.beam_requests import SPLITS
from transform.spec.metric_table import find_metric
from transform.spec.ranking_spec import RankingSpec

NOTED_COUNTS = (
    "duplicates_dropped",
    "late_rows",
    "impressions_outside_splits",
    "events_within_past",
    "impressions_without_user",
    "users_without_table_row",
    "impressions_without_item_row",
    "requests_above_max_candidates",
)


def print_summary(spec: RankingSpec, run: dict[str, ComponentRun], console: Console) -> None:
    """Prints anomalies, data, metrics, slices and the verdict of a finished run.

    Args:
        spec: RankingSpec.
        run: dict. The components of the run.
        console: Console. Where to print.
    """
    evaluation = run["Evaluator"].output("evaluation").uri
    metrics = load_metrics(evaluation)
    label_statistics = _read_json(
        os.path.join(run["LabelStatistics"].output("label_statistics").uri, LABEL_STATISTICS_FILE)
    )
    counts = _read_json(os.path.join(run["ImpressionExampleGen"].output("examples").uri, COUNTS_FILE))
    if all(run[node].cached for node in ("Trainer", "Evaluator", "LabelStatistics")):
        console.print(
            "Nothing changed: the model was trained and evaluated before; this is its stored table.", style="bold"
        )
    _print_anomalies(run, console)
    _print_data(counts, console)
    console.print(_task_table(spec, metrics, label_statistics, _gate_texts(spec, evaluation)))
    if len(metrics.candidate) > 1:
        console.print(_slice_table(spec, metrics))
    _print_verdict(run, evaluation, metrics, console)


def _print_anomalies(run: dict[str, ComponentRun], console: Console) -> None:
    anomalies = read_anomalies(run["ExampleValidator"].output("anomalies"))
    console.print(f"Anomalies: {len(anomalies) or 'none'}", highlight=False)
    for line in anomalies:
        console.print(f"  {line}", highlight=False)


def _print_data(counts: dict[str, int], console: Console) -> None:
    splits = []
    for split in SPLITS:
        requests, impressions = (counts.get(f"{split}_{what}", 0) for what in ("requests", "impressions"))
        splits.append(f"{split} {requests:,} requests, {impressions:,} impressions")
    console.print("Data: " + "; ".join(splits) + ".", highlight=False)
    seen = [f"{counts[name]:,} {name.replace('_', ' ')}" for name in NOTED_COUNTS if counts.get(name)]
    console.print("      " + ", ".join([f"{counts['impressions_read']:,} rows read", *seen]) + ".", highlight=False)


def _task_table(
    spec: RankingSpec, metrics: EvaluationMetrics, label_statistics: dict[str, Any], gates: dict[str, str]
) -> Table:
    table = Table(title="Test split, change against the blessed model in brackets", title_justify="left")
    table.add_column("task")
    table.add_column("positives", justify="right")
    table.add_column("base rate", justify="right")
    for metric in spec.evaluation.metrics:
        table.add_column(find_metric(metric).title, justify="right")
    has_popularity = all("popularity" in label_statistics[task] for task in spec.task_names)
    if has_popularity:
        table.add_column("popularity\nAUC / GAUC", justify="right")
    table.add_column("gate")
    for task in spec.task_names:
        base = label_statistics[task]
        values, change = metrics.candidate[()].get(task, {}), metrics.change.get((), {}).get(task, {})
        cells = [task, f"{base['positives']:,} of {base['impressions']:,}", f"{base['base_rate']:.4f}"]
        cells += [_value(values.get(name), change.get(name)) for name in spec.evaluation.metrics]
        if has_popularity:
            popularity = base["popularity"]
            cells.append(f"{_number(popularity['auc'])} / {_number(popularity['gauc'])}")
        table.add_row(*cells, gates[task])
    return table


def _slice_table(spec: RankingSpec, metrics: EvaluationMetrics) -> Table:
    table = Table(title="AUC by slice", title_justify="left")
    table.add_column("slice")
    table.add_column("impressions", justify="right")
    for task in spec.task_names:
        table.add_column(task, justify="right")
    for place, per_task in sorted(metrics.candidate.items(), key=lambda item: slice_order(item[0])):
        if place:
            impressions = max(int(values["example_count"]) for values in per_task.values())
            change = metrics.change.get(place, {})
            cells = [
                _value(per_task.get(task, {}).get("auc"), change.get(task, {}).get("auc")) for task in spec.task_names
            ]
            table.add_row(", ".join(f"{name}={value}" for name, value in place), f"{impressions:,}", *cells)
    return table


def slice_order(place: tuple[tuple[str, str], ...]) -> list[tuple[str, float, str]]:
    """A key that sorts slices by feature, then by the number at the beginning of the value if there is one."""

    def number(text: str) -> float:
        try:
            return float(text.strip("[]()").split(",")[0])
        except ValueError:
            return math.inf

    return [(name, number(value), value) for name, value in place]


def _gate_texts(spec: RankingSpec, evaluation: str) -> dict[str, str]:
    texts = dict.fromkeys(spec.task_names, "pass")
    for not_gated in load_not_gated(evaluation):
        texts[not_gated.task] = f"not gated: {not_gated.positives} < {not_gated.min_positives} positives"
    for failure in load_failures(evaluation):
        texts[failure.task] = "FAIL " + str(failure).split(": ", 1)[1]
    return texts


def _print_verdict(run: dict[str, ComponentRun], evaluation: str, metrics: EvaluationMetrics, console: Console) -> None:
    blessing = run["Evaluator"].output("blessing")
    blessed = blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == 1
    compared = "against the blessed model" if metrics.baseline else "no other blessed model to compare with"
    console.print(Text("BLESSED" if blessed else "NOT BLESSED", style="bold"), f"({compared})", highlight=False)
    for failure in load_failures(evaluation):
        console.print(f"  {failure}", highlight=False)
    served = _print_serving(run, console)
    pushed = run["AtomicPusher"].output("pushed_model")
    model = pushed.get_string_custom_property("pushed_destination")
    if not (blessed and served and model):
        console.print("Model: not pushed; the one in production stays.", highlight=False, soft_wrap=True)
    elif not tf.io.gfile.exists(os.path.join(model, "saved_model.pb")):
        console.print(f"Model: was pushed to {model}, but is no longer there.", highlight=False, soft_wrap=True)
    else:
        console.print(f"Model: {shown_path(model)}", highlight=False, soft_wrap=True)


def _print_serving(run: dict[str, ComponentRun], console: Console) -> bool:
    """Whether the model was served as it was trained, as far as that was tried."""
    if "ServingValidator" not in run:
        return True
    report = load_serving_report(run["ServingValidator"].output("blessing").uri)
    if report["blessed"]:
        console.print(f"Serving: {serving_words(report)}.", highlight=False)
    else:
        console.print(Text("NOT SERVABLE", style="bold"), "(serving the new model failed)", highlight=False)
    for line in (*report["problems"], *(f"note: {note}" for note in report["notes"])):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    return report["blessed"]


def serving_words(report: dict[str, Any]) -> str:
    """What a model did that was served as it was trained, in half a sentence."""
    largest = max(check["largest_difference"] for check in report["checks"])
    words = (
        f"{report['requests']:,} requests of the eval split scored by every signature as in training, within "
        f"{largest:.0e}"
    )
    for model, name in (("candidate", "rank takes"), ("baseline", "the blessed model's")):
        if model in report["rank_latency_ms"]:
            latency = report["rank_latency_ms"][model]
            words += f"; {name} {latency['median']:.1f} ms (median), {latency['p95']:.1f} ms (p95)"
    return words


def shown_path(path: str) -> str:
    """A path as a user types it: relative where it lies below the working folder."""
    return os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path


def _value(value: float | None, change: float | None) -> str:
    text = _number(value)
    return text if change is None or math.isnan(change) else f"{text} ({change:+.4f})"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _read_json(path: str) -> Any:
    with tf.io.gfile.GFile(path) as file:
        return json.loads(file.read())
