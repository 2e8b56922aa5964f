"""LightGBM beside the neural model of a pipeline run: `python -m benchmarks.lightgbm_baseline --help`.

Both see the same request examples: one classifier a task learns the train rows, stops on the eval rows and is measured
on the test rows, by the metrics that the Evaluator uses. LightGBM gets the user, context and candidate features of the
spec and no sequences: the distance to the neural model is what the histories and their encoder are worth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Before TensorFlow is imported: tensorflow_transform asks for Keras 2 where nothing is said.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import lightgbm
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tfx.types import artifact_utils

from tfx_pipeline.components.baselines import BASELINES_FILE
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.evaluation import load_metrics
from tfx_pipeline.runs import ComponentRun, RunReader
from trainer import metrics
from transform import examples
from transform.errors import PipelineError, UserError
from transform.spec import RankingSpec
from transform.spec_sections import Feature

METRICS = ("auc", "gauc", "normalized_entropy")
WIDTH_WITHOUT_TERMINAL = 160

MIN_FREQUENCY = 5  # rarer values of a categorical feature share one code
MAX_SET_COLUMNS = 64  # the most frequent values of a categorical set get a column each
ID_VALUES = 1000  # a categorical feature with more values than this is an id: tried with and without
OTHER = -1  # LightGBM reads negative codes as missing

PARAMETERS = {
    "objective": "binary",
    "metric": "auc",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "lambda_l2": 10.0,
    "feature_fraction": 0.7,
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


@dataclass(frozen=True)
class Rows:
    """The candidates of a split, one row each.

    Args:
        values: dict. By feature [rows]; of a categorical set a list of values a row.
        labels: dict. By task [rows].
        observed: dict. By task [rows]: whether the label is there.
        requests: array of shape [rows]. The id of each row's request.
    """

    values: dict[str, list[Any]]
    labels: dict[str, np.ndarray]
    observed: dict[str, np.ndarray]
    requests: np.ndarray

    def __len__(self) -> int:
        return len(self.requests)


# === Rows of requests ===


def read_rows(spec: RankingSpec, files: Sequence[str]) -> Rows:
    """Reads request examples and lays out their candidates as rows."""
    values: dict[str, list[Any]] = {feature.name: [] for _, feature in spec.feature_groups()}
    labels: dict[str, list[float]] = {task: [] for task in spec.task_names}
    observed: dict[str, list[float]] = {task: [] for task in spec.task_names}
    requests: list[str] = []
    for record in tf.data.TFRecordDataset(sorted(files), "GZIP").as_numpy_iterator():
        request = examples.decode(record)
        count = request[examples.CANDIDATE_COUNT][0]
        requests += request[examples.REQUEST_ID] * count
        for task in spec.task_names:
            labels[task] += request[examples.label_key(task)]
            observed[task] += request[examples.mask_key(task)]
        for group, feature in spec.feature_groups():
            of_request = request[feature.name]
            if feature.type == "categorical_set":
                of_request = _sets(of_request, request[examples.length_key(feature.name)])
            values[feature.name] += of_request if group == "candidate" else of_request * count
    return Rows(
        values,
        {task: np.array(column, "float32") for task, column in labels.items()},
        {task: np.array(column) > 0 for task, column in observed.items()},
        np.array(requests),
    )


def _sets(flat: list[str], lengths: list[int]) -> list[list[str]]:
    ends = np.cumsum(lengths)
    return [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]
