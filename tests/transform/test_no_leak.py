"""What came of an impression reaches no transformed input of its own request, and does reach later ones."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from tests.testing import small_problem
from transform.features.dataset import to_batch, transformed_dtypes
from transform.features.request_example import raw_feature_spec, sequence_key
from transform.ingest.beam_requests import SPLITS, RequestExamples

pytestmark = [pytest.mark.slow, pytest.mark.once]

OUTCOMES = ("bought", "saved", "shared", "dwell_ms")


def with_other_outcomes(data: str, folder: Path, day: int) -> str:
    """A copy of the data in which every outcome of a day is another one."""
    shutil.copytree(data, folder)
    for path in folder.glob("log*.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if int(row["day"]) == day:
                row.update({name: str(1 - int(row[name])) for name in OUTCOMES[:3]}, dwell_ms="1")
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(folder)


def _request_id(request: bytes) -> tuple[bytes, bytes]:
    features = tf.train.Example.FromString(request).features.feature
    return features["request_id"].bytes_list.value[0], features["item"].SerializeToString()


def transformed_inputs(small, requests: list[bytes]) -> dict[str, np.ndarray]:
    """Every transformed input of the requests in the order of their ids, flat by key."""
    ordered = sorted(requests, key=_request_id)
    raw = tf.io.parse_example(tf.constant(ordered), raw_feature_spec(small.spec, targets=False))
    batch = to_batch(small.inputs(), small.transform_output.transform_features_layer()(raw))
    inputs = {**batch["user"], **batch["context"], **batch["candidates"]}
    for sequence, parts in batch["sequences"].items():
        inputs.update({sequence_key(sequence, part): values for part, values in parts.items()})
    return {key: values.numpy() for key, values in inputs.items()}


@pytest.fixture(scope="module", params=["small", "small_aggregates"])
def small(request):
    """Every test is run without aggregate features and with them."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("day", "reaches_later"), [(small_problem.DAYS, False), (small_problem.DAYS - 1, True)])
def test_outcomes_reach_no_input_but_those_of_later_requests(small, tmp_path, day, reaches_later):
    changed = with_other_outcomes(small.data_dir, tmp_path / "data", day)
    with beam.Pipeline() as pipeline:
        built = pipeline | RequestExamples(small.spec, changed)
        for split in SPLITS:
            _ = built[split] | f"Write[{split}]" >> beam.io.WriteToTFRecord(
                str(tmp_path / split), file_name_suffix=".gz"
            )
    differing = set()
    for split in SPLITS:
        files = sorted(str(path) for path in tmp_path.glob(f"{split}*"))
        before, after = (
            transformed_inputs(small, [r.numpy() for r in tf.data.TFRecordDataset(found, "GZIP")])
            for found in (small.raw[split], files)
        )
        assert set(before) == set(after)
        differing |= {
            key
            for key in before
            if before[key].shape != after[key].shape or not np.array_equal(before[key], after[key])
        }
    earlier = [f"{sequence.name}_" for sequence in small.spec.sequences]
    earlier += [feature.name for feature in small.spec.aggregate_features()]
    if reaches_later:
        assert all(any(key.startswith(name) for key in differing) for name in earlier if not name.endswith("_count"))
        assert all(key.startswith(tuple(earlier)) for key in differing)
    else:
        assert not differing


def test_no_outcome_is_among_the_transformed_features(small):
    """Names, and values: no input tells a label of the same impression with certainty."""
    columns = {feature.source_column for _, feature in small.spec.feature_groups()}
    assert not columns & set(OUTCOMES)
    assert not set(transformed_dtypes(small.inputs())) & set(OUTCOMES)
    from trainer.metrics.ranking_metrics import auc
    from transform.features.batching import request_batches

    batch, targets = next(iter(request_batches(small.inputs(), small.transformed["train"], 10_000)))
    present = batch["candidates"]["mask"].numpy()
    for k, task in enumerate(small.spec.task_names):
        observed = targets["weights"].numpy()[present][:, k]
        labels = targets["labels"].numpy()[present][:, k]
        for name, values in batch["candidates"].items():
            if name != "mask" and values.shape.rank == 2:
                certainty = abs(auc(labels, values.numpy()[present].astype("float64"), observed) - 0.5)
                assert certainty < 0.48, f"{name} tells {task}"
