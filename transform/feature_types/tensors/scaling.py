"""Numbers in TensorFlow: scales, z-scores and buckets, for the types whose values are numbers.

Scales are in double precision: Beam adds and cuts batches in no fixed order, and TensorFlow's float32 logarithm depends
on a value's place in its batch. Rounded at the end, equal data give equal features in every run.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

QUANTILE_ERROR = 0.001
SMALLEST_RATE = 1e-6  # log-odds of a rate without a positive are finite
Function = Callable[[tf.Tensor], tf.Tensor]


def buckets(boundaries: tf.Tensor) -> Function:
    """Values to buckets from 1 on, a boundary to the one above it; a missing value has the bucket 0."""

    def bucket(values: tf.Tensor) -> tf.Tensor:
        known = 1 + tf.reduce_sum(tf.cast(values[:, None] >= boundaries, tf.int64), axis=1)
        return tf.where(tf.math.is_nan(values), tf.zeros_like(known), known)

    return bucket


def z_score(scale: Function, mean: tf.Tensor, deviation: tf.Tensor) -> Function:
    """Scaled values in standard deviations from their mean; a missing value is the mean."""

    def standardized(values: tf.Tensor) -> tf.Tensor:
        z = tf.math.divide_no_nan(scale(values) - mean, deviation)
        return zero_for_missing(tf.cast(z, tf.float32))

    return standardized


def zero_for_missing(values: tf.Tensor) -> tf.Tensor:
    """0 where a value is NaN."""
    return tf.where(tf.math.is_nan(values), tf.zeros_like(values), values)


# === Scales ===


def _plain(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, tf.float64)


def _signed_log(values: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(values, tf.float64)
    return tf.sign(wide) * tf.math.log1p(tf.abs(wide))


def _log_odds(rates: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(rates, tf.float64)
    inside = tf.clip_by_value(wide, SMALLEST_RATE, 1 - SMALLEST_RATE)
    return tf.where(tf.math.is_nan(wide), wide, tf.math.log(inside) - tf.math.log1p(-inside))


SCALES: dict[str, Function] = {"z": _plain, "log_z": _signed_log, "logit_z": _log_odds}
