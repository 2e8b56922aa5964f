"""The type `time`: epoch milliseconds, of which a model gets the place in the hour, the day and the week."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from transform.errors import DataError
from transform.feature_types.base import Feature, ValueFunction, register_feature_type
from transform.feature_types.column import Column

if TYPE_CHECKING:
    import tensorflow as tf

MISSING = -1
PERIODS_MS = {"hour": 3_600_000, "day": 86_400_000, "week": 604_800_000}
FIRST_MONDAY_MS = 4 * PERIODS_MS["day"]  # 1 January 1970 was a Thursday
# Seconds of the years 2001 to 5138, as milliseconds of early 1970 to 1973. Smaller times are those of simulations.
_SECONDS = range(10**9, 10**11)
_LATEST = 10**14  # milliseconds of the year 5138

Period = Literal["hour", "day", "week"]


@register_feature_type("time")
class TimeFeature(Feature):
    """A moment in epoch milliseconds, such as an upload: where it lies in its day and week, as points on a circle."""

    dtype: ClassVar[str] = "int64"

    periods: tuple[Period, ...] = Field(("day", "week"), min_length=1, examples=[["hour", "day"]])
    """A model gets where a time lies in each of them, as a sine and a cosine. Weeks begin on Monday."""
    utc_offset: float = Field(0.0, ge=-12, le=14, examples=[8])
    """By how many hours days and weeks begin before they do in UTC."""

    def parse(self, text: str, origin: str) -> Any:
        """Epoch milliseconds, -1 when missing."""
        return parse_time(text, origin, self.source_column) if text else MISSING

    def columns(self, group: str) -> list[Column]:
        """Sine and cosine of the place in each period."""
        names = (f"{self.name}_{period}_{function}" for period in self.periods for function in ("sin", "cos"))
        return [Column(group, name, "dense", None, 1) for name in names]

    @classmethod
    def preprocess(
        cls, features: Sequence[TimeFeature], values: Mapping[str, tf.Tensor], events: Sequence[tf.Tensor]
    ) -> dict[str, list[ValueFunction]]:
        """Nothing is analysed; a missing time is 0 in all columns."""
        import tensorflow as tf

        def cyclic(feature: TimeFeature, period: str, function: ValueFunction) -> ValueFunction:
            def place_on_circle(times: tf.Tensor) -> tf.Tensor:
                local = times + round(feature.utc_offset * PERIODS_MS["hour"]) - FIRST_MONDAY_MS
                # The remainder of whole numbers: a float32 would round a time to minutes.
                place = tf.cast(tf.math.floormod(local, PERIODS_MS[period]), tf.float32) / PERIODS_MS[period]
                return tf.where(times < 0, tf.zeros_like(place), function(2 * math.pi * place))

            return place_on_circle

        return {
            feature.name: [cyclic(feature, period, f) for period in feature.periods for f in (tf.sin, tf.cos)]
            for feature in features
        }


def parse_time(text: str, origin: str, column: str) -> int:
    """Epoch milliseconds as a whole number; raises a DataError for anything else."""
    cure = "Convert the column, as 1650813567259 for 24 April 2022, 15:19:27 UTC."
    try:
        value = int(text)
    except ValueError:
        raise DataError(
            f"{origin}: a whole number of epoch milliseconds is expected in `{column}`. Received: `{text}`. {cure}"
        ) from None
    if value < 0 or value in _SECONDS or value >= _LATEST:
        guess = "a time before 1970" if value < 0 else "seconds" if value < _LATEST else "micro- or nanoseconds"
        raise DataError(
            f"{origin}: epoch milliseconds are expected in `{column}`. Received: `{text}`, which looks like {guess}. "
            f"{cure}"
        )
    return value
