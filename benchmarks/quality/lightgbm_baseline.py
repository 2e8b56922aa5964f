"""LightGBM beside the neural model of a pipeline run: `python -m benchmarks.quality.lightgbm_baseline --help`.

Both see the same requests: a classifier a task learns from the train rows, stops on the eval rows and is measured on
the test rows, with the Evaluator's metrics. LightGBM gets the user, context and candidate features of the spec but no
sequences, so the distance between the two is what the user's history and a model that reads it are worth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# Before TensorFlow is imported: tensorflow_transform asks for Keras 2 where nothing is said.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Before OpenMP is loaded: on a busy machine, threads that spin while they wait make LightGBM many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import lightgbm
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tfx.types import artifact_utils
from tfx.utils import path_utils

from serving.export.exporter import load_exported_spec
from tfx_pipeline.components.label_statistics import LABEL_STATISTICS_FILE
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.evaluation.eval_config import load_metrics
from tfx_pipeline.metadata.runs import ComponentRun, RunReader
from trainer.metrics import ranking_metrics
from transform.errors import PipelineError, UserError
from transform.feature_types.time import FIRST_MONDAY_MS, PERIODS_MS
from transform.features import request_example
from transform.ingest.beam_requests import SPLITS
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec

METRICS = ("auc", "gauc", "normalized_entropy")
WIDTH_WITHOUT_TERMINAL = 160

MIN_FREQUENCY = 5  # rarer values of a categorical feature are as good as missing
SET_COLUMNS = 64  # the most frequent values of a categorical set get a column each
ID_VALUES = 1000  # a categorical feature of more train values is an id

# How often an id was seen in training is always a column. Which id it is can help or overfit: the eval split decides
# whether the trees see that of no group, of the candidates or of all.
ID_GROUPS: dict[str, tuple[str, ...]] = {
    "no": (),
    "candidate": ("candidate",),
    "all": ("user", "context", "candidate"),
}

# Tuned on the eval split of data/kuairand_dev.yaml.
PARAMETERS = {
    "objective": "binary",
    "metric": "auc",
    "learning_rate": 0.05,
    "num_leaves": 63,
    "min_data_in_leaf": 100,
    "lambda_l2": 10.0,
    "feature_fraction": 0.2,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "cat_smooth": 50.0,
    "cat_l2": 50.0,
    "max_cat_threshold": 64,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
MAX_ROUNDS = 2000
PATIENCE = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, measures and prints the table; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    tf.get_logger().setLevel("ERROR")  # TFMA reads its results in a deprecated way
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_WITHOUT_TERMINAL)
    try:
        report = benchmark(load_spec(arguments.spec), arguments.output, arguments.threads, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_report(report, console)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.lightgbm_baseline",
        description="Trains LightGBM on the requests of the newest pipeline run and prints its test metrics beside "
        "those of the run's model and of item popularity. Run the pipeline first.",
    )
    parser.add_argument("--spec", required=True, help="the spec that the pipeline was run with")
    parser.add_argument("--output", required=True, help="the --output of that run")
    parser.add_argument("--json", help="a file to write the numbers to")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="LightGBM's threads (default: %(default)s)"
    )
    return parser.parse_args(argv)


def benchmark(spec: RankingSpec, output: str, threads: int, console: Console) -> dict[str, Any]:
    """Everything that is measured, as plain JSON values."""
    run = find_run(spec, output)
    seconds, peak_memory = {}, {"imports": _peak_memory()}
    started = time.perf_counter()
    requests = run["ImpressionExampleGen"].output("examples")
    splits = {split: read_rows(spec, artifact_utils.get_split_uri([requests], split)) for split in SPLITS}
    columns = list(make_columns(spec, splits["train"]))
    inputs = {split: to_matrix(columns, rows) for split, rows in splits.items()}
    seconds["reading"] = time.perf_counter() - started
    with open(
        os.path.join(run["LabelStatistics"].output("label_statistics").uri, LABEL_STATISTICS_FILE), encoding="utf-8"
    ) as file:
        tasks: dict[str, dict[str, Any]] = json.load(file)
    of_model = load_metrics(run["Evaluator"].output("evaluation").uri).candidate[()]
    for task in spec.task_names:
        started = time.perf_counter()
        tasks[task]["lightgbm"] = evaluate_task(task, columns, inputs, splits, threads, spec.training.seed)
        tasks[task]["model"] = {name: of_model[task][name] for name in METRICS if name in of_model[task]}
        seconds[task] = time.perf_counter() - started
        console.print(f"  {task}: {seconds[task]:.0f} s", highlight=False)
    peak_memory["all"] = _peak_memory()
    versions = {module.__name__: module.__version__ for module in (lightgbm, np, tf)}
    return {
        "spec": spec.name,
        "model": spec.model.name,
        "impressions": {split: len(rows.requests) for split, rows in splits.items()},
        "columns": len(columns),
        "tasks": tasks,
        "parameters": PARAMETERS,
        "seconds": seconds,
        "peak_memory_gib": peak_memory,
        "threads": threads,
        "versions": {"python": platform.python_version(), **versions},
    }


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def find_run(spec: RankingSpec, output: str) -> dict[str, ComponentRun]:
    """The components of the newest run, which must have finished with the spec's data, features and tasks."""
    run = RunReader(PipelineConfig(spec, "", os.path.abspath(output)).metadata_path, spec.name).newest()
    for node in ("ImpressionExampleGen", "Trainer", "LabelStatistics", "Evaluator"):
        if node not in run or not run[node].finished:
            raise PipelineError(
                f"--output: a finished pipeline run of `{spec.name}` is expected. Received: `{output}`, "
                f"where the newest run has no finished {node}. Run the pipeline with this spec and this folder first."
            )
    trained = load_exported_spec(path_utils.serving_model_path(run["Trainer"].output("model").uri))
    if trained.data_part().to_json() != spec.data_part().to_json():
        raise PipelineError(
            f"--spec: the spec of the newest run in `{output}` is expected. Received: one whose data, features, "
            "sequences or tasks differ. Run the pipeline again with this spec, or give the other one."
        )
    return run


# === Requests as rows ===


@dataclass(frozen=True)
class Candidates:
    """The candidates of a split, one row each.

    Args:
        values: dict. By feature [rows]; of a categorical set, a list of values per row.
        labels: dict. By task [rows].
        masks: dict. By task [rows]; 0 where the label is missing.
        requests: array of shape [rows]. The id of each row's request.
    """

    values: dict[str, list[Any]]
    labels: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    requests: np.ndarray


def read_rows(spec: RankingSpec, folder: str) -> Candidates:
    """Reads the request examples of a split; what a request holds once goes to each of its rows."""
    values: dict[str, list[Any]] = {feature.name: [] for _, feature in spec.feature_groups()}
    labels: dict[str, list[float]] = {task: [] for task in spec.task_names}
    masks: dict[str, list[float]] = {task: [] for task in spec.task_names}
    requests: list[str] = []
    files = sorted(tf.io.gfile.glob(os.path.join(folder, "*.gz")))
    for record in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator():
        request = request_example.decode(record)
        count = request[request_example.CANDIDATE_COUNT][0]
        requests += request[request_example.REQUEST_ID] * count
        for task in spec.task_names:
            labels[task] += request[request_example.label_key(task)]
            masks[task] += request[request_example.weight_key(task)]
        for group, feature in spec.feature_groups():
            column = feature.decode(request)
            values[feature.name] += column if group == "candidate" else column * count
    return Candidates(values, _arrays(labels), _arrays(masks), np.array(requests))


def _arrays(columns: dict[str, list[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(column) for name, column in columns.items()}


# === Features as columns ===


@dataclass(frozen=True)
class Column:
    """One input of LightGBM.

    Args:
        name: str.
        feature: str. The feature that it is made of.
        of_value: callable. Its number for a value of the feature; NaN is missing.
        is_code: bool. Whether the numbers are codes of categories. Defaults to `False`.
        id_group: str or None. The group of the feature, when the column tells ids apart. Defaults to `None`.
    """

    name: str
    feature: str
    of_value: Callable[[Any], float]
    is_code: bool = False
    id_group: str | None = None


def make_columns(spec: RankingSpec, train: Candidates) -> Iterator[Column]:
    """The columns of all features; codes and counts are those of the train split."""
    for group, feature in spec.feature_groups():
        values = train.values[feature.name]
        if feature.type == "numeric":
            yield Column(feature.name, feature.name, float)
        elif feature.type == "categorical":
            yield from _categorical(group, feature.name, Counter(value for value in values if value))
        elif feature.type == "time":
            for period in feature.periods:
                yield Column(f"{feature.name}_{period}", feature.name, partial(_place, feature.utc_offset, period))
        else:
            counts = Counter(value for row in values for value in row)
            for index, (value, _) in enumerate(counts.most_common(SET_COLUMNS)):
                yield Column(f"{feature.name}_{index}", feature.name, partial(_holds, value))


def _categorical(group: str, name: str, counts: Counter[str]) -> Iterator[Column]:
    codes = {value: code for code, (value, count) in enumerate(counts.most_common()) if count >= MIN_FREQUENCY}
    is_id = len(counts) > ID_VALUES
    yield Column(name, name, lambda value: codes.get(value, np.nan), True, group if is_id else None)
    if is_id:
        yield Column(f"{name}_count", name, lambda value: counts[value])


def _place(utc_offset: float, period: str, time: int) -> float:
    local = time + utc_offset * PERIODS_MS["hour"] - FIRST_MONDAY_MS
    return local % PERIODS_MS[period] if time >= 0 else np.nan


def _holds(wanted: str, row: list[str]) -> float:
    return float(wanted in row)


def to_matrix(columns: Sequence[Column], rows: Candidates) -> np.ndarray:
    """Float [rows, columns]."""
    matrix = np.empty((len(rows.requests), len(columns)), np.float32)
    for index, column in enumerate(columns):
        matrix[:, index] = [column.of_value(value) for value in rows.values[column.feature]]
    return matrix


# === LightGBM ===


def evaluate_task(
    task: str,
    columns: Sequence[Column],
    inputs: dict[str, np.ndarray],
    splits: dict[str, Candidates],
    threads: int,
    seed: int,
) -> dict[str, Any]:
    """Trains a task with each choice of ids; the test metrics are those of the choice that is best on eval."""
    fitted: dict[str, tuple[float, lightgbm.Booster, np.ndarray]] = {}
    for ids, groups in ID_GROUPS.items():
        kept = np.array([column.id_group in (None, *groups) for column in columns])
        booster = fit(task, columns, kept, inputs, splits, {"num_threads": threads, "seed": seed})
        auc = ranking_metrics.compute("auc", score(booster, kept, inputs["eval"], task, splits["eval"]))
        fitted[ids] = auc, booster, kept
    chosen = max(fitted, key=lambda ids: np.nan_to_num(fitted[ids][0]))
    _, booster, kept = fitted[chosen]
    rows = score(booster, kept, inputs["test"], task, splits["test"])
    return {
        **{name: float(ranking_metrics.compute(name, rows)) for name in METRICS},
        "auc_error": auc_error(rows),
        "ids": chosen,
        "rounds": booster.best_iteration,
        "eval_auc": {ids: auc for ids, (auc, _, _) in fitted.items()},
    }


def fit(
    task: str,
    columns: Sequence[Column],
    kept: np.ndarray,
    inputs: dict[str, np.ndarray],
    splits: dict[str, Candidates],
    settings: dict[str, int],
) -> lightgbm.Booster:
    """Trains on the train rows that have a label until the AUC on the eval rows no longer rises."""
    chosen = [column for column, keep in zip(columns, kept, strict=True) if keep]
    codes = [column.name for column in chosen if column.is_code]
    names = [column.name for column in chosen]
    data: list[lightgbm.Dataset] = []
    for split in ("train", "eval"):
        weights = splits[split].masks[task]
        there = weights > 0
        matrix, labels = inputs[split][there][:, kept], splits[split].labels[task][there]
        reference = data[0] if data else None
        data.append(
            lightgbm.Dataset(matrix, labels, reference, weights[there], feature_name=names, categorical_feature=codes)
        )
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    return lightgbm.train({**PARAMETERS, **settings}, data[0], MAX_ROUNDS, [data[1]], callbacks=[stop])


def score(
    booster: lightgbm.Booster, kept: np.ndarray, matrix: np.ndarray, task: str, candidates: Candidates
) -> ranking_metrics.Rows:
    """Labels, probabilities and requests of the rows that have a label."""
    probabilities = booster.predict(matrix[:, kept])
    return ranking_metrics.Rows.observed(
        candidates.labels[task], probabilities, candidates.requests, candidates.masks[task]
    )


def auc_error(rows: ranking_metrics.Rows) -> float:
    """The standard error of an AUC on this many rows: Hanley and McNeil 1982."""
    auc = ranking_metrics.compute("auc", rows)
    positives = ranking_metrics.positive_count(rows.labels)
    negatives = len(rows) - positives
    of_positives = (positives - 1) * (auc / (2 - auc) - auc**2)
    of_negatives = (negatives - 1) * (2 * auc**2 / (1 + auc) - auc**2)
    return float(np.sqrt((auc * (1 - auc) + of_positives + of_negatives) / max(positives * negatives, 1)))


# === The table ===


def print_report(report: dict[str, Any], console: Console) -> None:
    """Prints what was measured."""
    rows = ", ".join(f"{split} {count:,}" for split, count in report["impressions"].items())
    table = Table(title=f"Test split of {report['spec']}", title_justify="left")
    table.add_column("task")
    for name in ("positives", "base rate", "AUC ±", "popularity\nAUC / GAUC", "LightGBM\nAUC / GAUC / norm. entropy"):
        table.add_column(name, justify="right")
    table.add_column("ids it uses")
    table.add_column(f"model ({report['model']})\nAUC / GAUC / norm. entropy", justify="right")
    for task, of_task in report["tasks"].items():
        trees = of_task["lightgbm"]
        cells = [f"{of_task['positives']:,}", f"{of_task['base_rate']:.4f}", f"{trees['auc_error']:.4f}"]
        cells += [_values(of_task.get("popularity", {}), METRICS[:2]), _values(trees), trees["ids"]]
        table.add_row(task, *cells, _values(of_task["model"]))
    console.print(table)
    seconds, memory = report["seconds"], report["peak_memory_gib"]
    training = sum(seconds[task] for task in report["tasks"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    for line in (
        f"Impressions: {rows}. LightGBM: {report['columns']} columns, no sequences; AUC ± is one standard error.",
        f"Reading {seconds['reading']:.0f} s, training {training:.0f} s ({len(ID_GROUPS)} fits a task, "
        f"{report['threads']} threads), peak memory {memory['all']:.1f} GiB (imports alone {memory['imports']:.1f}).",
        f"Versions: {versions}.",
    ):
        console.print(line, highlight=False)


def _values(of_task: dict[str, float], names: Sequence[str] = METRICS) -> str:
    known = (of_task.get(name, np.nan) for name in names)
    return " / ".join("-" if np.isnan(value) else f"{value:.4f}" for value in known)


if __name__ == "__main__":
    sys.exit(main())
