"""Aggregate features: numbers that follow from the section `aggregates`, and not from a column."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from transform.feature_types.base import ValueFunction
from transform.feature_types.column import Column
from transform.feature_types.numeric import NumericFeature

if TYPE_CHECKING:
    import tensorflow as tf


class AggregateFeature(NumericFeature):
    """One number that follows from a block of `aggregates`: a numeric feature of request examples.

    A model gets it twice: log-odds or a logarithm, and its quantile bucket.

    Attributes:
        key: tuple of str. The parts of the key.
        task: str.
        window: str.
        statistic: str. `rate`: the smoothed share of positives, NaN when the task has no label before the request's
            day. `count`: the observed labels.
        smoothing: float. Pseudo-observations at the task's overall rate.
    """

    key: tuple[str, ...]
    task: str
    window: str
    statistic: Literal["rate", "count"]
    smoothing: float

    def columns(self, group: str) -> list[Column]:
        """The scaled number and the bucket."""
        return [
            Column(group, self.name, "dense", None, 1),
            Column(group, f"{self.name}_bucket", "id", self.bucket_table, self.dim),
        ]

    def analysis_key(self, group: str) -> Hashable:
        """Of one group, task and number of buckets.

        There are many, and analyses of its own for each would take minutes. Such features are the columns of one
        matrix: they have equally many values, and their rates are missing in the same rows.
        """
        return "aggregates", group, self.task, self.buckets

    @classmethod
    def preprocess(
        cls, features: Sequence[AggregateFeature], values: Mapping[str, tf.Tensor], events: Sequence[tf.Tensor]
    ) -> dict[str, list[ValueFunction]]:
        """Two functions of each feature, whose means, deviations and boundaries are analysed as one matrix."""
        import tensorflow as tf
        import tensorflow_transform as tft

        from transform.feature_types.tensors import scaling

        matrix = tf.stack([values[feature.name] for feature in features], axis=1)
        present = tf.boolean_mask(matrix, ~tf.reduce_any(tf.math.is_nan(matrix), axis=1))
        scales = [scaling.SCALES["logit_z" if feature.statistic == "rate" else "log_z"] for feature in features]
        wide = tf.stack([scale(present[:, place]) for place, scale in enumerate(scales)], axis=1)
        means = tf.unstack(tft.mean(wide, reduce_instance_dims=False))
        deviations = tf.unstack(tf.sqrt(tft.var(wide, reduce_instance_dims=False)))
        quantiles = tft.quantiles(present, features[0].buckets, scaling.QUANTILE_ERROR, reduce_instance_dims=False)
        boundaries = tf.unstack(quantiles)
        return {
            feature.name: [
                scaling.z_score(scales[place], means[place], deviations[place]),
                scaling.buckets(boundaries[place]),
            ]
            for place, feature in enumerate(features)
        }
