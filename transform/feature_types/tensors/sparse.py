"""Padded tensors as the sparse ones that parsing request examples gives."""

from __future__ import annotations

import tensorflow as tf


def masked(values: tf.Tensor, mask: tf.Tensor) -> tf.SparseTensor:
    """The values where a boolean mask of the same shape is true, in their places."""
    there = tf.where(mask)
    return tf.SparseTensor(there, tf.gather_nd(values, there), tf.shape(mask, tf.int64))
