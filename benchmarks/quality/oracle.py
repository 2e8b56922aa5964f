"""What nobody can beat on a synthetic data set, and what everybody should.

    python -m benchmarks.quality.oracle FOLDER

The oracle scores the test split with the true probabilities; popularity knows the items' train rates alone.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import sys
from collections.abc import Sequence

import numpy as np

from trainer.metrics.ranking_metrics import Rows, compute
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec

METRICS = ("auc", "gauc")
SMOOTHING = 20.0  # impressions of the mean rate that every item is given before its own, as in LabelStatistics


def oracle(folder: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """AUC and per-request GAUC of the truth on the test split, by task.

    Args:
        folder: str or path. What `transform.datasets.synthetic` wrote.

    Returns:
        `{task: {"auc": ..., "gauc": ...}}`.
    """
    spec, truth = _read(folder)
    test = _in_split(spec, truth, "test")
    return {
        task.name: _metrics(truth[task.label][test], truth[f"p_{task.name}"][test], truth["request_id"][test])
        for task in spec.tasks
    }


def popularity(folder: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """The same of a ranker that knows the items' smoothed train rates and no user."""
    spec, truth = _read(folder)
    train, test = (_in_split(spec, truth, split) for split in ("train", "test"))
    items, item = np.unique(truth["item_id"], return_inverse=True)
    found = {}
    for task in spec.tasks:
        labels = truth[task.label].astype(float)
        positives = np.bincount(item[train], labels[train], len(items))
        seen = np.bincount(item[train], minlength=len(items))
        rates = (positives + SMOOTHING * labels[train].mean()) / (seen + SMOOTHING)
        found[task.name] = _metrics(labels[test], rates[item[test]], truth["request_id"][test])
    return found


def _read(folder: str | os.PathLike[str]) -> tuple[RankingSpec, dict[str, np.ndarray]]:
    spec = load_spec(os.path.join(folder, "spec.yaml"))
    with gzip.open(os.path.join(folder, "truth.csv.gz"), "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = {name: np.array(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}
    numeric = {task.label: int for task in spec.tasks} | {f"p_{task.name}": float for task in spec.tasks}
    numeric[spec.split.by] = int
    return spec, {name: column.astype(numeric.get(name, str)) for name, column in columns.items()}


def _in_split(spec: RankingSpec, truth: dict[str, np.ndarray], split: str) -> np.ndarray:
    first, last = spec.split.ranges()[split]
    return (truth[spec.split.by] >= first) & (truth[spec.split.by] <= last)


def _metrics(labels: np.ndarray, scores: np.ndarray, requests: np.ndarray) -> dict[str, float]:
    rows = Rows.observed(labels, scores, requests, None)
    return {name: compute(name, rows) for name in METRICS}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both as a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.oracle",
        description="Test metrics of the truth and of item popularity on a synthetic data set.",
    )
    parser.add_argument("folder", help="the --output of transform.datasets.synthetic")
    folder = parser.parse_args(argv).folder
    best, least = oracle(folder), popularity(folder)
    print(f"{'task':<8} {'oracle AUC / GAUC':>19} {'popularity AUC / GAUC':>23}")
    for task in best:
        cells = [" / ".join(f"{found[task][name]:.4f}" for name in METRICS) for found in (best, least)]
        print(f"{task:<8} {cells[0]:>19} {cells[1]:>23}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
