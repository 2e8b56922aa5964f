"""What a client carries from one call to the next: tensors that have to survive the journey.

TF Serving's batching pads a tensor to the longest of a batch with the tensor's own first value, others pad with zeros.
So a mask does not travel as zeros and ones: a padded place would be taken for a real one wherever the first is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import tensorflow as tf

from serving.export.raw_inputs import Tensors

PART = "part"


def pack_user_state(cache: Mapping[str, tf.Tensor], dtype: str, exact: Collection[str] = ()) -> Tensors:
    """A user state as it travels: masks [B, U] as int32 places, 1 to U where true, else 0; numbers in `dtype`.

    Tensors that are named in `exact` stay float32.
    """

    def packed(name: str, tensor: tf.Tensor) -> tf.Tensor:
        if tensor.dtype == tf.bool:
            return tf.where(tensor, _places(tensor), 0)
        return tf.cast(tensor, dtype) if tensor.dtype.is_floating and name not in exact else tensor

    return {name: packed(name, tf.convert_to_tensor(tensor)) for name, tensor in cache.items()}


def unpack_user_state(cache: Mapping[str, tf.Tensor], masks: frozenset[str]) -> Tensors:
    """The opposite of `pack_user_state`, in float32; a place that holds another one's number is padding."""

    def unpacked(name: str, tensor: tf.Tensor) -> tf.Tensor:
        if name in masks:
            return tensor == _places(tensor)
        return tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor

    return {name: unpacked(name, tensor) for name, tensor in cache.items()}


def _places(tensor: tf.Tensor) -> tf.Tensor:
    return tf.range(1, tf.shape(tensor)[1] + 1)


def pack_summary(summary: Mapping[str, tf.Tensor]) -> Tensors:
    """The summary of a part of the candidates as it travels: with `part` int32 [B, 1, 2], which tells it from padding.

    It holds (0, 1): whatever pads it, with zeros or with its first value, pads it with (0, 0).
    """
    if not summary:
        return {}
    b = tf.shape(next(iter(summary.values())))[0]
    return {**summary, PART: tf.tile([[[0, 1]]], [b, 1, 1])}


def unpack_summary(summary: Mapping[str, tf.Tensor], nothing: Mapping[str, tf.Tensor]) -> Tensors:
    """The summaries of all parts, [B, P, ...]; padding becomes `nothing` [1, 1, ...], the summary of no candidate."""
    if not summary:
        return {}
    real = summary[PART][:, :, 1] > 0

    def unpacked(tensor: tf.Tensor, instead: tf.Tensor) -> tf.Tensor:
        return tf.where(real[(...,) + (None,) * (len(tensor.shape) - 2)], tensor, instead)

    return {name: unpacked(tensor, nothing[name]) for name, tensor in summary.items() if name != PART}
