"""Counting features in the spec: the section `aggregates`, and the features that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timezone, tzinfo
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, PositiveInt, field_validator

from transform.feature_types.aggregate import AggregateFeature
from transform.feature_types.base import feature_types, one_of
from transform.section import Name, Section

if TYPE_CHECKING:
    from transform.spec.ranking_spec import RankingSpec

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


def aggregate_features(spec: RankingSpec) -> Iterator[tuple[int, str, AggregateFeature]]:
    """The counting features of a spec in the order of the file: the block's index, the group, the feature.

    A key with a part of the candidate is the candidate's, else one with a part of the context is the context's, else it
    is the user's.
    """
    for index, block in enumerate(spec.aggregates):
        for key in block.keys:
            groups = {key_part_group(spec, part) for part in key}
            group = next((name for name in ("candidate", "context") if name in groups), "user")
            for task in block.tasks:
                for window in block.windows:
                    for statistic in ("rate", "count"):
                        feature = AggregateFeature(
                            name=f"{'_'.join(key)}_{task}_{window}_{statistic}",
                            type="numeric",
                            buckets=block.buckets,
                            dim=block.dim,
                            key=key,
                            task=task,
                            window=window,
                            statistic=statistic,  # type: ignore[arg-type]
                            smoothing=block.smoothing,
                        )
                        yield index, group, feature


def key_part_group(spec: RankingSpec, part: str) -> str | None:
    """The group of a key's part: that of the feature, else of the key column; None when there is no such part."""
    groups = {feature.name: group for group, feature in spec.declared_features()}
    columns = {spec.item_key: "candidate", spec.user_key: "user"}
    return groups.get(part) or columns.get(part)


def carried_columns(spec: RankingSpec) -> dict[str, str]:
    """The key columns that are parts of keys and no features, with their group."""
    names = {feature.name for _, feature in spec.declared_features()}
    parts = dict.fromkeys(part for block in spec.aggregates for key in block.keys for part in key if part not in names)
    return {part: group for part in parts if (group := key_part_group(spec, part))}


def aggregate_problems(spec: RankingSpec) -> Iterator[str]:
    """What the blocks refer to and do not find, each with its cure."""
    features = {feature.name: feature for _, feature in spec.declared_features()}
    columns = [column for column in (spec.user_key, spec.item_key) if column]
    known = [name for name, feature in features.items() if feature.aggregate_key]
    known += [column for column in columns if column not in features]
    kinds = {**{name: f"a {f.type} feature" for name, f in features.items()}, **dict.fromkeys(columns, "a key column")}
    types = one_of(name for name, cls in feature_types().items() if cls.aggregate_key)
    kinds.update({sequence.name: "a sequence" for sequence in spec.sequences})
    for i, block in enumerate(spec.aggregates):
        for j, key in enumerate(block.keys):
            for part in key:
                if part not in known:
                    what = f"`{part}`, {kinds[part]}" if part in kinds else f"`{part}`"
                    yield (
                        f"aggregates[{i}].keys[{j}]: a single-valued {types} feature, or the key column of user or "
                        f"item, is expected. Received: {what}. Known: {', '.join(known) or 'none'}."
                    )
        for task in block.tasks:
            if task not in spec.task_names:
                names = ", ".join(spec.task_names)
                yield f"aggregates[{i}].tasks: the name of a task is expected. Received: `{task}`. Known: {names}."
        if block.timezone != spec.aggregates[0].timezone:
            yield (
                f"aggregates[{i}].timezone: one time zone in all blocks is expected, as a day is the same for all. "
                f"Received: `{block.timezone}`, but `{spec.aggregates[0].timezone}` in aggregates[0]. Make them equal."
            )
