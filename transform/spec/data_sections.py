"""The sections of the ranking spec, one frozen pydantic model each.

Keys and meaning are the data contract of the whole package; `transform.spec.ranking_spec` puts the sections together
and checks what refers from one to another. Here is what the data are, in `model_sections` what is made of them.

Each key has its meaning below it and an example beside it; docs/spec.md is written from them (`make docs`).
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from transform.errors import SpecError
from transform.feature_types.base import Feature
from transform.section import Name, Section

SPLITS = ("train", "eval", "test")


def _split_value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a whole number or a text is expected. Quote dates, as YAML reads them as no text")
    return value


SplitValue = Annotated[int | str, BeforeValidator(_split_value)]


class Files(Section):
    """Input files. A Parquet file gives the rows that the same table would have as csv; its lists stay lists."""

    files: tuple[str, ...] = Field(min_length=1, examples=[["part-*.parquet"]])
    """Patterns of .csv, .csv.gz and .parquet files, relative to the data folder."""


class Table(Section):
    """One row per key: the features of users or of items."""

    files: tuple[str, ...] = Field((), examples=[["users.parquet"]])
    """Patterns as those of the log. Without files the section only names the key column."""
    key: str = Field(examples=["user_id"])
    """The column that names the user or the item, in the log and in the table."""


class Tables(Section):
    """The side tables that are joined to the log. Sequences need the user's key, popularity baselines the item's."""

    user: Table | None = Field(None, examples=[{"files": ["users.csv"], "key": "user_id"}])
    """The users."""
    item: Table | None = Field(None, examples=[{"files": ["videos.csv"], "key": "video_id"}])
    """The items. The columns in use should fit a worker's memory."""


class Past(Files):
    """What users did before the log begins: one row per user, each column a list of values, oldest first."""

    key: str = Field(examples=["user_id"])
    """The column of the user: that of the user table, if there is one."""
    time: str | None = Field(None, examples=["last_time_ms"])
    """A column with the time of the user's newest past event, in epoch milliseconds. Requests that are not later never
    see the past, and log rows that are not later are no second time an event. By default the past is before all."""
    separator: str = Field(" ", examples=["|"])
    """What stands between the values of a list. Lists in Parquet files need none."""
    sequences: dict[Name, dict[Name, str]] = Field(
        default_factory=dict, examples=[{"watched": {"video_id": "impressions"}, "liked": {"video_id": "likes"}}]
    )
    """By sequence and feature, the column that holds the values."""
    feedback: dict[Name, str] = Field(default_factory=dict, examples=[{"like": "likes"}])
    """By task, the column that lists the items which got its positive label, so that past events carry feedback too."""


class Data(Section):
    """Where the log and its side tables lie, and which columns are outcomes that may never be inputs."""

    impressions: Files = Field(examples=[{"files": ["log*.csv.gz"]}])
    """The log: one row is one impression."""
    tables: Tables = Field(Tables(), examples=[{"user": {"key": "user_id"}, "item": {"key": "video_id"}}])
    """The tables of users and items, or their key columns alone."""
    past: Past | None = Field(
        None,
        examples=[{"files": ["past.csv"], "key": "user_id", "sequences": {"watched": {"video_id": "impressions"}}}],
    )
    """Histories from before the log."""
    drop_duplicates: bool = Field(True, examples=[False])
    """Whether a user's rows that are equal in all columns of the file count once."""
    max_user_rows: PositiveInt = Field(100_000, examples=[20_000])
    """The most rows of one user, who is in one worker's memory while requests are built. A user of more, most often no
    person, stops the run."""
    outcomes: tuple[str, ...] = Field((), examples=[["play_time_ms"]])
    """Columns that are known only after the impression: rejected as features, as labels are."""


class Request(Section):
    """What makes a request: rows that share an id, or the values of some columns. One of the two is given."""

    id: str | None = Field(None, examples=["request_id"])
    """The column of the request's id. All rows of an id are one user's."""
    group_by: tuple[str, ...] | None = Field(None, examples=[["user_id", "date"]])
    """Columns: rows that are equal in all of them are a request, of each user one if the spec names the user's key."""
    time: str = Field(examples=["time_ms"])
    """The column of the impression's time, in epoch milliseconds. A request's time is that of its first impression."""
    max_candidates: PositiveInt = Field(64, examples=[128])
    """The most candidates of one example. A longer request is split in the order of time; the parts do not see each
    other."""
    weight: str | None = Field(None, examples=["sampling_weight"])
    """A column: an impression of weight w counts as w impressions in the loss, in base rates and in all metrics. It
    undoes the down-sampling of negatives, or a propensity. Counts of rows and of positives, and so `min_positives`,
    stay what they are. 0 is as if the labels were missing."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Request:
        if (self.id is None) == (not self.group_by):
            raise ValueError("one of `id` and `group_by` is expected, not both and not neither")
        return self

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns whose values name a request."""
        return (self.id,) if self.id is not None else tuple(self.group_by or ())


DATE_FORMATS = {"YYYYMMDD": "%Y%m%d", "YYYY-MM-DD": "%Y-%m-%d"}


def parse_date(text: str, date_format: str) -> datetime.date:
    """A date as it stands in a column, or a ValueError that says what is expected."""
    try:
        date = datetime.datetime.strptime(text, DATE_FORMATS[date_format]).date()
    except ValueError:
        date = None
    if date is None or date.strftime(DATE_FORMATS[date_format]) != text:  # strptime takes 2022-5-1 too
        raise ValueError(f"a date written as {date_format} is expected")
    return date


class Split(Section):
    """Time-based splits: inclusive ranges of the values of one column, each later than the one before.

    A request is in the split of its first impression. Those in none are not learned from; histories hold them.
    """

    by: str = Field(examples=["date"])
    """The column that the bounds are about."""
    date_format: Literal["YYYYMMDD", "YYYY-MM-DD"] | None = Field(None, examples=["YYYYMMDD"])
    """How the column writes dates. With it, bounds are days relative to the as-of date: 0 is that day, -1 the one
    before. Without it they are values as they stand in the column."""
    as_of: str | None = Field(None, examples=["2022-05-05"])
    """The as-of date, as YYYY-MM-DD. Runs set it, from `--as_of` or the log's last day; a file that does is fixed to
    it."""
    train: tuple[SplitValue, SplitValue] = Field(examples=[[-10, -3]])
    """First and last value of what is learned from; vocabularies and other statistics come from here too."""
    eval: tuple[SplitValue, SplitValue] = Field(examples=[[-2, -2]])
    """First and last value of what early stopping watches."""
    test: tuple[SplitValue, SplitValue] = Field(examples=[[-1, 0]])
    """First and last value of what the Evaluator measures and gates judge."""

    def ranges(self) -> dict[str, tuple[SplitValue, SplitValue]]:
        """The splits in their order, by name.

        Raises:
            SpecError: when the bounds are relative to a date that nobody gave.
        """
        if self.date_format:
            raise SpecError(
                "split: an as-of date for the bounds is expected. Received: none. Run the pipeline, which takes the "
                f"last day of the log or --as_of, or write bounds as they stand in `{self.by}`, without `date_format`."
            )
        return {name: getattr(self, name) for name in SPLITS}

    def resolved(self, as_of: str) -> Split:
        """The same splits with bounds as they stand in the column, for an as-of date written as YYYY-MM-DD."""
        day = parse_date(as_of, "YYYY-MM-DD")
        bounds: dict[str, tuple[SplitValue, ...]] = {}
        for name in SPLITS:
            dates = (day + datetime.timedelta(days=int(offset)) for offset in getattr(self, name))
            texts = [date.strftime(DATE_FORMATS[self.date_format or ""]) for date in dates]
            bounds[name] = tuple(int(text) if text.isdigit() else text for text in texts)
        return Split(by=self.by, **bounds)

    @field_validator("as_of")
    @classmethod
    def _as_of_is_a_date(cls, value: str | None) -> str | None:
        if value is not None:
            parse_date(value, "YYYY-MM-DD")
        return value

    @model_validator(mode="after")
    def _ordered_and_disjoint(self) -> Split:
        ranges = [(name, getattr(self, name)) for name in SPLITS]
        bounds = [value for _, limits in ranges for value in limits]
        if self.date_format and any(isinstance(value, str) or value > 0 for value in bounds):
            raise ValueError("with `date_format`, whole days relative to the as-of date are expected, 0 or less")
        if self.as_of and not self.date_format:
            raise ValueError("`as_of` has no meaning without `date_format`. Remove it, or write relative bounds")
        if len({type(value) for value in bounds}) > 1:
            raise ValueError("bounds of one type, all numbers or all strings, are expected")
        for name, (first, last) in ranges:
            if first > last:
                raise ValueError(f"[first, last] with first <= last is expected for `{name}`")
        for (earlier, (_, end)), (later, (start, _)) in zip(ranges, ranges[1:], strict=False):
            if start <= end:
                raise ValueError(f"`{later}` should begin after `{earlier}` ends, so that no split sees its future")
        return self


class Task(Section):
    """One thing to predict. The order of the tasks is the cascade's order."""

    name: Name = Field(examples=["like"])
    """The task's name: that of an output of the served model."""
    label: str = Field(examples=["is_like"])
    """The column of the log that holds 0, 1, or nothing where the label is missing."""
    weight: float = Field(1.0, gt=0, examples=[3.0])
    """The weight of the task's loss. No metric depends on it."""
    observed_when: Name | None = Field(None, examples=["click"])
    """Another task: where its label is not 1, this one is missing."""


Inputs = tuple[SerializeAsAny[Feature], ...]  # written with the options of their types


class Features(Section):
    """The inputs, by what they describe."""

    user: Inputs = Field(min_length=1, examples=[[{"name": "user_id", "type": "categorical"}]])
    """What is known of the user: from the user table, or else the log."""
    context: Inputs = Field((), examples=[[{"name": "device", "type": "categorical", "pick": "first"}]])
    """What is known of the request, the same for all its candidates: from the log."""
    candidate: Inputs = Field(
        min_length=1,
        examples=[
            [
                {"name": "video_id", "type": "categorical", "vocabulary": "item"},
                {"name": "tag", "type": "categorical_set"},
                {"name": "duration_ms", "type": "numeric", "transform": "log_z"},
                {"name": "uploaded_at", "type": "time"},
            ]
        ],
    )
    """What is known of each candidate: from the log, or else the item table."""


class Sequence(Section):
    """A typed list of the user's events, newest last: impressions that are strictly earlier than the request."""

    name: Name = Field(examples=["watched"])
    """The sequence's name; its parts are the inputs `<sequence>_<feature>` and `<sequence>_<task>`."""
    role: Literal["history", "anchor"] = Field("history", examples=["anchor"])
    """For models that treat reference sequences (anchors) apart from the history; DIN attends to both alike."""
    length: PositiveInt = Field(50, examples=[20])
    """The most events, the newest ones."""
    where: Name | None = Field(None, examples=["like"])
    """A task: only events with its positive label are kept. All events by default."""
    features: tuple[Name, ...] = Field(min_length=1, examples=[["video_id"]])
    """Single-valued candidate features that each event carries."""
    feedback: tuple[Name, ...] = Field((), examples=[["click", "like"]])
    """Tasks whose label each event carries: yes, no or unknown."""
