"""Aggregate features in the spec: a block of the section `aggregates`, and the features that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timezone, tzinfo
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, PositiveInt, field_validator

from transform.feature_types.aggregate import AggregateFeature
from transform.section import Name, Section

EVERYTHING = "all"  # the window of all days before the request's


def _window(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(rf"{EVERYTHING}|[1-9]\d*d", value):
        raise ValueError("a window is expected: all, or a number of days before the request's, as 7d")
    return value


def _time_zone(value: Any) -> Any:
    try:
        time_zone(value)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError("a time zone that this machine knows is expected, as Asia/Shanghai") from error
    return value


def time_zone(name: str) -> tzinfo:
    """The time zone of a name; UTC needs no database of time zones."""
    return timezone.utc if name == "UTC" else ZoneInfo(name)


class Aggregate(Section):
    """Smoothed rates and counts of keys, by task and window, as of the day before a request."""

    keys: tuple[Annotated[tuple[Name, ...], Field(min_length=1)], ...] = Field(
        min_length=1, examples=[[["video_id"], ["user_id", "video_id"]]]
    )
    """Lists of single-valued categorical features, or of the key columns of user and item."""
    tasks: tuple[Name, ...] = Field(min_length=1, examples=[["click", "like"]])
    """The tasks whose labels are counted."""
    windows: tuple[Annotated[str, BeforeValidator(_window)], ...] = Field(min_length=1, examples=[["1d", "7d", "all"]])
    """Days before the request's day: `1d` is the day before, `7d` the seven before, `all` everything before."""
    smoothing: float = Field(20.0, gt=0, examples=[100.0])
    """Pseudo-observations at the task's overall rate."""
    timezone: Annotated[str, BeforeValidator(_time_zone)] = Field("UTC", examples=["Asia/Shanghai"])
    """Where a day begins at midnight; one for all blocks."""
    buckets: int = Field(10, ge=2, examples=[20])
    """The number of quantile buckets of each feature."""
    dim: PositiveInt = Field(4, examples=[8])
    """The width of the embedding of a bucket."""

    @field_validator("keys", "tasks", "windows")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({frozenset(value) if isinstance(value, tuple) else value for value in values}) < len(values):
            raise ValueError("each of them once is expected, in whatever order a key names its parts")
        if any(isinstance(value, tuple) and len(set(value)) < len(value) for value in values):
            raise ValueError("a key of different parts is expected")
        return values

    def features(self, key: tuple[str, ...]) -> Iterator[AggregateFeature]:
        """The features of one of the keys."""
        for task in self.tasks:
            for window in self.windows:
                for statistic in ("rate", "count"):
                    yield AggregateFeature(
                        name=f"{'_'.join(key)}_{task}_{window}_{statistic}",
                        type="numeric",
                        buckets=self.buckets,
                        dim=self.dim,
                        key=key,
                        task=task,
                        window=window,
                        statistic=statistic,  # type: ignore[arg-type]
                        smoothing=self.smoothing,
                    )
