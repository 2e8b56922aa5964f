"""Batches of a few shapes: what is compiled for each shape is compiled a few times."""

from __future__ import annotations

import math

import tensorflow as tf

from transform.features.dataset import Batch
from transform.features.model_inputs import ModelInputs

SMALLEST = 8
LARGEST_SET = 2**20  # ids of one candidate: a spec names no limit


def bucket_sizes(largest: int) -> tuple[int, ...]:
    """The sizes that an axis may have: 8, 16, 32 and so on below the largest, and the largest itself."""
    doublings = max(0, math.ceil(math.log2(largest / SMALLEST)))
    return (*(SMALLEST * 2**n for n in range(doublings)), largest)


def count_buckets(inputs: ModelInputs, max_candidates: int) -> int:
    """How many shapes padded batches may have, for each size of the sets of ids."""
    largest = (max_candidates, *(sequence.length for sequence in inputs.sequences))
    return math.prod(len(bucket_sizes(size)) for size in largest)


def pad_to_buckets(
    inputs: ModelInputs, batch: Batch, targets: dict[str, tf.Tensor], batch_requests: int, max_candidates: int
) -> tuple[Batch, dict[str, tf.Tensor]]:
    """Pads a batch to the next shape of a bounded set.

    B becomes `batch_requests`: the last batch of an epoch gets requests without candidates, whose labels have no
    weight. N, each U and each S (of sets of ids) become one of their `bucket_sizes`. Masks say that there is nothing,
    and losses and gradients stay what they are.

    Args:
        inputs: ModelInputs.
        batch: dict. What `features.to_batch` returns.
        targets: dict. What `features.to_targets` returns.
        batch_requests: int. At least B.
        max_candidates: int. The most candidates of a request, at least N.

    Returns:
        Batch and targets, padded behind.
    """
    b, n = batch_requests, _bucket(batch["candidates"]["mask"], 1, max_candidates)
    padded = {group: {name: _pad(values, b) for name, values in batch[group].items()} for group in ("user", "context")}
    padded["sequences"] = {}
    for sequence in inputs.sequences:
        events = batch["sequences"][sequence.name]
        u = _bucket(events["mask"], 1, sequence.length)
        padded["sequences"][sequence.name] = {name: _pad(values, b, u) for name, values in events.items()}
    padded["candidates"] = {
        name: _pad(values, b, n, *([_bucket(values, 2, LARGEST_SET)] if len(values.shape) == 3 else []))
        for name, values in batch["candidates"].items()
    }
    return padded, {name: _pad(values, b, n) for name, values in targets.items()}


def _bucket(tensor: tf.Tensor, axis: int, largest: int) -> tf.Tensor:
    """The smallest size that holds an axis."""
    sizes = tf.constant(bucket_sizes(largest))
    return sizes[tf.searchsorted(sizes, tf.shape(tensor)[axis : axis + 1])[0]]


def _pad(tensor: tf.Tensor, *sizes: int | tf.Tensor) -> tf.Tensor:
    """Fills the first axes up with zeros."""
    missing = [size - tf.shape(tensor)[axis] for axis, size in enumerate(sizes)]
    return tf.pad(tensor, [[0, m] for m in missing] + [[0, 0]] * (len(tensor.shape) - len(sizes)))
