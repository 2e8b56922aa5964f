"""AdamW for models with large embedding tables."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="onerank")
class LazyAdamW(keras.optimizers.AdamW):
    """AdamW that touches only those rows of an embedding table that a batch looks up.

    Keras's goes over whole tables in each step, several times: their moments fade, and their weights decay. Here
    moments and weights of a row stand still until it is looked up again, so that a step costs what its batch holds.
    For other variables, and for a table of which all rows are looked up, it is AdamW. (Keras's, given the gradients of
    look-ups, squares them one by one; here a row that was looked up twice has the square of the sum.)

    Weight decay acts on whole variables; call `exclude_from_weight_decay(var_list=tables)` and rows of those tables
    decay when they are looked up.

    Args:
        **kwargs: what `keras.optimizers.AdamW` takes.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of a variable."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        rate, step = tf.cast(learning_rate, variable.dtype), tf.cast(self.iterations + 1, variable.dtype)
        rate_of_step = rate * tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)

        rows, slopes = _sums(gradient)
        mean = tf.gather(first.value, rows)
        mean += (slopes - mean) * (1 - self.beta_1)
        variance = tf.gather(second.value, rows)
        variance += (tf.square(slopes) - variance) * (1 - self.beta_2)
        weights = tf.gather(variable, rows)
        if self.weight_decay:
            weights -= weights * rate * self.weight_decay
        weights -= rate_of_step * mean / (tf.sqrt(variance) + self.epsilon)
        for kept, values in ((first, mean), (second, variance), (variable, weights)):
            self.assign(kept, tf.IndexedSlices(values, rows))


def _sums(gradient: tf.IndexedSlices) -> tuple[tf.Tensor, tf.Tensor]:
    """The rows that are looked up, in order, and their gradients.

    A row that is looked up twice is there twice, each time with the sum: so there is one for each look-up, and XLA
    knows how many. Writing the same value twice is harmless.
    """
    order = tf.argsort(gradient.indices, stable=True)
    rows = tf.gather(gradient.indices, order)
    place = tf.cumsum(tf.cast(rows != tf.roll(rows, 1, 0), tf.int32))
    sums = tf.math.unsorted_segment_sum(tf.gather(gradient.values, order), place, tf.size(rows) + 1)
    return rows, tf.gather(sums, place)
