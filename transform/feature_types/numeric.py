"""The type `numeric`: a number that is scaled, or put into one of its quantile buckets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from transform.errors import DataError
from transform.feature_types.base import Feature, ValueFunction, register_feature_type
from transform.feature_types.column import Column

if TYPE_CHECKING:
    import tensorflow as tf

LARGEST = 3.4028234663852886e38  # of a float32, which is what an example holds


@register_feature_type("numeric")
class NumericFeature(Feature):
    """A number, such as a price: scaled as it is, or an embedding of the quantile bucket that it lies in."""

    dtype: ClassVar[str] = "float32"
    sliceable: ClassVar[bool] = True

    transform: Literal["z", "log_z", "quantiles", "identity"] = Field("z", examples=["quantiles"])
    """What becomes of a number: `z` standard deviations from its mean; `log_z` the same of sign(x) log(1 + |x|);
    `quantiles` an embedding of its quantile bucket; `identity` itself. A missing one becomes 0, which for `z` and
    `log_z` is the mean, or has a bucket of its own."""
    buckets: int = Field(10, ge=2, examples=[20])
    """The number of quantile buckets."""

    def parse(self, text: str, origin: str) -> Any:
        """A float, NaN when missing."""
        if text == "":
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.inf
        if abs(value) > LARGEST:
            raise DataError(
                f"{origin}: a finite number is expected for feature `{self.name}`. Received: `{text}`. "
                "Leave missing values empty, or make the feature categorical."
            )
        return value

    @property
    def bucket_table(self) -> str:
        """The embedding table of the quantile buckets."""
        return f"{self.name}.bucket"  # the dot keeps it apart from all vocabularies

    def columns(self, group: str) -> list[Column]:
        """The bucket, or the scaled number."""
        if self.transform == "quantiles":
            return [Column(group, self.name, "id", self.bucket_table, self.dim)]
        return [Column(group, self.name, "dense", None, 1)]

    @classmethod
    def table_rows(cls, features: Sequence[NumericFeature], vocabulary_size: Callable[[str], int]) -> dict[str, int]:
        """A row for each bucket."""
        return {f.bucket_table: 1 + f.buckets for f in features for column in f.columns("") if column.table}

    @classmethod
    def preprocess(
        cls, features: Sequence[Any], values: Mapping[str, tf.Tensor], events: Sequence[tf.Tensor]
    ) -> dict[str, list[ValueFunction]]:
        """A function of each feature, analysed on its own values that are not missing."""
        return {feature.name: [feature._function(values[feature.name])] for feature in features}

    def _function(self, values: tf.Tensor) -> ValueFunction:
        import tensorflow as tf
        import tensorflow_transform as tft

        from transform.feature_types.tensors import scaling

        if self.transform == "identity":
            return scaling.zero_for_missing
        present = tf.boolean_mask(values, ~tf.math.is_nan(values))
        if self.transform == "quantiles":
            return scaling.buckets(tft.quantiles(present, self.buckets, scaling.QUANTILE_ERROR)[0])
        scale = scaling.SCALES[self.transform]
        wide = scale(present)
        return scaling.z_score(scale, tft.mean(wide), tf.sqrt(tft.var(wide)))
