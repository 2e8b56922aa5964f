"""Batches of requests from files of transformed examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from transform.features.dataset import parse_transformed, to_batch, to_targets
from transform.features.model_inputs import ModelInputs
from transform.features.padding import pad_to_buckets
from transform.features.request_example import CANDIDATE_COUNT, REQUEST_ID


def request_batches(
    inputs: ModelInputs,
    files: Sequence[str],
    batch_requests: int,
    shuffle_requests: int | None = None,
    seed: int = 0,
    skip: int = 0,
    pad_to_buckets_of: int | None = None,
) -> tf.data.Dataset:
    """Reads transformed examples into padded batches.

    Beam writes records in no fixed order, so each window of `shuffle_requests` records is ordered by request id before
    it is shuffled: data that fit one window give the same batches for the same seed, however they were written.

    Args:
        inputs: ModelInputs. The features that a batch holds, and the tasks of its targets.
        files: sequence of str. Gzipped TFRecord files.
        batch_requests: int. B, the requests in a batch; the last batch may hold fewer.
        shuffle_requests: int, optional. The shuffle buffer; without it the order of the files is kept.
        seed: int. The shuffle's seed. Defaults to 0.
        skip: int. Batches to leave out at the start. Defaults to 0.
        pad_to_buckets_of: int, optional. The most candidates of a request. With it, batches have one of a few shapes,
            see `padding.pad_to_buckets`; without it, they are padded to the longest of the batch.

    Returns:
        A dataset of (batch, targets) as `dataset.to_batch` and `dataset.to_targets` describe them.
    """
    records = tf.data.TFRecordDataset(sorted(files), "GZIP")
    if shuffle_requests:
        records = records.batch(shuffle_requests).map(_ordered).unbatch()
        records = records.shuffle(shuffle_requests, seed=seed, reshuffle_each_iteration=True)

    def parse(serialized: tf.Tensor) -> tuple[dict, dict]:
        tensors = parse_transformed(inputs, serialized)
        batch, targets = to_batch(inputs, tensors), to_targets(inputs, tensors)
        if pad_to_buckets_of is None:
            return batch, targets
        return pad_to_buckets(inputs, batch, targets, batch_requests, pad_to_buckets_of)

    batches = records.batch(batch_requests).skip(skip)
    return batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def request_ids(files: Sequence[str], batch_requests: int) -> tf.data.Dataset:
    """The ids of the requests that `request_batches` reads without a shuffle, batch by batch.

    The parts of a request that is longer than `request.max_candidates` are examples of their own and share its id.

    Args:
        files: sequence of str. Gzipped TFRecord files.
        batch_requests: int. B, as in `request_batches`.

    Returns:
        A dataset of string tensors [B].
    """
    return tf.data.TFRecordDataset(sorted(files), "GZIP").batch(batch_requests).map(_ids)


def _ids(records: tf.Tensor) -> tf.Tensor:
    return tf.io.parse_example(records, {REQUEST_ID: tf.io.FixedLenFeature([], tf.string)})[REQUEST_ID]


def _ordered(records: tf.Tensor) -> tf.Tensor:
    # By id, not by the records themselves: equal examples may hold their features in another order.
    # Stable, as parts of one long request have its id; they are written one behind the other.
    return tf.gather(records, tf.argsort(tf.strings.to_hash_bucket_fast(_ids(records), 2**62), stable=True))


@dataclass(frozen=True)
class LabelCounts:
    """What a split holds.

    Attributes:
        requests: int.
        candidates: int. Impressions.
        observed: array [K]. Labels that are there, by task.
        positives: array [K]. Positive ones.
    """

    requests: int
    candidates: int
    observed: np.ndarray
    positives: np.ndarray

    @property
    def base_rates(self) -> np.ndarray:
        """The share of positives [K], smoothed by one positive and one negative, so that it is never 0 or 1."""
        return (self.positives + 1) / (self.observed + 2)


def count_labels(inputs: ModelInputs, files: Sequence[str]) -> LabelCounts:
    """Counts requests, candidates and labels in files of transformed examples.

    Args:
        inputs: ModelInputs. Its K tasks are those whose labels are counted.
        files: sequence of str. Gzipped TFRecord files.

    Returns:
        LabelCounts.
    """
    k = len(inputs.tasks)
    nothing = (tf.zeros([], tf.int64), tf.zeros([], tf.int64), tf.zeros([k], tf.float64), tf.zeros([k], tf.float64))

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, ...]:
        tensors = parse_transformed(inputs, serialized)
        targets = to_targets(inputs, tensors)
        weights = tf.cast(targets["weights"], tf.float64)
        positives = tf.reduce_sum(weights * tf.cast(targets["labels"], tf.float64), axis=[0, 1])
        candidates = tf.reduce_sum(tensors[CANDIDATE_COUNT].flat_values)
        return tf.size(serialized, tf.int64), candidates, tf.reduce_sum(weights, axis=[0, 1]), positives

    batches = tf.data.TFRecordDataset(sorted(files), "GZIP").batch(1024).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    counted = batches.reduce(nothing, lambda total, part: tuple(a + b for a, b in zip(total, part, strict=True)))
    requests, candidates, observed, positives = (count.numpy() for count in counted)
    return LabelCounts(int(requests), int(candidates), observed, positives)


def count_requests(files: Sequence[str]) -> int:
    """The number of records in gzipped TFRecord files."""
    return int(tf.data.TFRecordDataset(sorted(files), "GZIP").reduce(tf.constant(0, tf.int64), lambda n, _: n + 1))
