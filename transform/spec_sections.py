"""The sections of the ranking spec, one frozen pydantic model each.

Keys and meaning are the data contract of the whole package; `transform.spec` puts the sections together and checks
what refers from one to another.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from transform.errors import SpecError

SPLITS = ("train", "eval", "test")
NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


def _split_value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a whole number or a text is expected. Quote dates, as YAML reads them as no text")
    return value


SplitValue = Annotated[int | str, BeforeValidator(_split_value)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Files(Section):
    """Input files: patterns relative to the data folder."""

    files: tuple[str, ...] = Field(min_length=1)


class Table(Section):
    """One row a key: the features of users or of items. Without files it only names the key column."""

    files: tuple[str, ...] = ()
    key: str


class Tables(Section):
    """The side tables that are joined to the log."""

    user: Table | None = None
    item: Table | None = None


class Past(Files):
    """What users did before the log begins: one row a user, each column a list of values, oldest first.

    `sequences` says which column holds which feature of which sequence; `feedback` names columns that list the items
    which got a task's positive label, so that past events carry feedback too. `time` is a column with the time of the
    newest past event: requests that are not later never see the past, and log rows that are not later are no second
    time an event.
    """

    key: str
    time: str | None = None
    separator: str = " "
    sequences: dict[Name, dict[Name, str]] = Field(default_factory=dict)
    feedback: dict[Name, str] = Field(default_factory=dict)


class Data(Section):
    """Where the log and its side tables lie, and which columns are outcomes that may never be inputs.

    A user's rows are in one worker's memory while their requests are built: a user of more than `max_user_rows`, most
    often no person, stops the run.
    """

    impressions: Files
    tables: Tables = Tables()
    past: Past | None = None
    drop_duplicates: bool = True
    max_user_rows: PositiveInt = 100_000
    outcomes: tuple[str, ...] = ()


class Request(Section):
    """What makes a request: rows that share an id, or the values of some columns.

    `weight` is a column of the log: an impression of weight w counts as w impressions in the loss, in base rates and in
    all metrics. It undoes the down-sampling of negatives, or a propensity. Counts of rows and of positives, and so
    `min_positives`, stay what they are. 0 is as if the labels were missing.
    """

    id: str | None = None
    group_by: tuple[str, ...] | None = None
    time: str
    max_candidates: PositiveInt = 64
    weight: str | None = None

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
    """Time-based splits: inclusive ranges of the values of one column.

    With `date_format` the column holds dates, and the bounds are days relative to the as-of date: 0 is that day, -1 the
    one before. A run gives the date, and `resolved` makes literals of the bounds; `as_of` is where it travels.
    """

    by: str
    date_format: Literal["YYYYMMDD", "YYYY-MM-DD"] | None = None
    as_of: str | None = None
    train: tuple[SplitValue, SplitValue]
    eval: tuple[SplitValue, SplitValue]
    test: tuple[SplitValue, SplitValue]

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

    name: Name
    label: str
    weight: float = Field(1.0, gt=0)
    observed_when: Name | None = None


class Vocabulary(Section):
    """How the values of a categorical feature become ids. Features that name one vocabulary share it.

    `hash_buckets` learns no vocabulary: a value's id is its hash, and values may share one. It is for ids so many, or
    so new, that a list of them would be too long or too old.
    """

    name: Name | None = None
    top_k: PositiveInt | None = None
    min_frequency: PositiveInt | None = None
    oov: int = Field(1, ge=0)
    hash_buckets: int | None = Field(None, ge=2)


Period = Literal["hour", "day", "week"]

# The keys of a feature that have a meaning for some types only.
_OPTIONS = {
    "categorical": {"vocabulary"},
    "categorical_set": {"vocabulary", "separator"},
    "numeric": {"transform", "buckets"},
    "time": {"periods", "utc_offset"},
}


class Feature(Section):
    """One input. `column` defaults to the name.

    A `time` is in epoch milliseconds; a model gets where it lies in each of the `periods`, as a sine and a cosine.
    Days and weeks begin `utc_offset` hours before they do in UTC; weeks begin on Monday.
    """

    name: Name
    type: Literal["categorical", "categorical_set", "numeric", "time"]
    column: str | None = None
    vocabulary: Vocabulary | None = None
    dim: PositiveInt = 16
    transform: Literal["z", "log_z", "quantiles", "identity"] = "z"
    buckets: int = Field(10, ge=2)
    separator: str = ","
    periods: tuple[Period, ...] = Field(("day", "week"), min_length=1)
    utc_offset: float = Field(0.0, ge=-12, le=14)
    pick: Literal["first"] | None = None

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _options_fit_type(self) -> Feature:
        foreign = set().union(*_OPTIONS.values()) - _OPTIONS[self.type]
        wrong = sorted(foreign & self.model_fields_set)
        if wrong:
            raise ValueError(f"`{wrong[0]}` has no meaning for type `{self.type}`. Remove it, or change the type")
        return self

    @property
    def source_column(self) -> str:
        """The column that holds the feature."""
        return self.column or self.name

    @property
    def transforms(self) -> tuple[str, ...]:
        """What a number becomes, one column for each."""
        return (self.transform,)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the model's columns that the feature becomes: one, but two for each period of a time."""
        if self.type != "time":
            return (self.name, f"{self.name}_bucket")[: len(self.transforms)]
        return tuple(f"{self.name}_{period}_{function}" for period in self.periods for function in ("sin", "cos"))


class Features(Section):
    """The inputs, by what they describe."""

    user: tuple[Feature, ...] = Field(min_length=1)
    context: tuple[Feature, ...] = ()
    candidate: tuple[Feature, ...] = Field(min_length=1)


class Sequence(Section):
    """A typed list of the user's earlier events, newest last, each with its features and its own feedback.

    `role` is for models that treat reference sequences (anchors) apart from the history; DIN attends to both alike.
    """

    name: Name
    role: Literal["history", "anchor"] = "history"
    length: PositiveInt = 50
    where: Name | None = None
    features: tuple[Name, ...] = Field(min_length=1)
    feedback: tuple[Name, ...] = ()


class Loss(Section):
    """The weight of the list-wise term beside binary cross-entropy, and where its temperatures start."""

    infonce: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0.01)


class Model(BaseModel):
    """The model's name, its loss and its settings; the model itself checks the settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Name = "onerank"
    loss: Loss = Loss()

    @property
    def settings(self) -> dict[str, Any]:
        """All keys but the name and the loss."""
        return dict(self.model_extra or {})


class Optimizer(Section):
    """The optimizer and its schedule. The learning rate falls along a cosine to a tenth of its start."""

    name: Literal["adamw", "adam", "adagrad", "sgd"] = "adamw"
    learning_rate: float = Field(0.002, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"


class EarlyStopping(Section):
    """Stops when a task's metric on the eval split is no longer better for `patience` epochs."""

    task: Name
    metric: Literal["auc", "gauc", "normalized_entropy"] = "auc"
    patience: PositiveInt = 1


class Training(Section):
    """The training loop's settings.

    Embedding tables may have an optimizer of their own, and a penalty: `embedding_l2` times half the squares of the
    vectors that a request looks up. Every `gradients_every` steps the tasks' gradients are compared; 0 is never. After
    each epoch, and every `checkpoint_every` steps, training is saved to go on from there after a crash; 0 is never.
    """

    epochs: PositiveInt = 2
    batch_requests: PositiveInt = 256
    shuffle_requests: PositiveInt = 50_000
    optimizer: Optimizer = Optimizer()
    embedding_optimizer: Optimizer | None = None
    embedding_l2: float = Field(0.0, ge=0)
    early_stopping: EarlyStopping | None = None
    gradients_every: int = Field(100, ge=0)
    checkpoint_every: int = Field(1000, ge=0)
    seed: int = Field(1, ge=0)


METRIC_PATTERN = r"^(auc|gauc|normalized_entropy|calibration|ndcg@[1-9]\d*)$"


class Gate(Section):
    """When a task may be pushed. `minimum` is a bound for metrics that should rise, `maximum` for those that fall."""

    metric: Annotated[str, StringConstraints(pattern=METRIC_PATTERN)] = "auc"
    tolerance: float = Field(0.002, ge=0)
    minimum: float | None = None
    maximum: float | None = None
    min_positives: PositiveInt = 50

    @model_validator(mode="after")
    def _bound_fits_metric(self) -> Gate:
        if self.metric == "calibration":
            raise ValueError("a metric with a direction is expected: auc, gauc, ndcg@k or normalized_entropy")
        wrong = "minimum" if self.metric == "normalized_entropy" else "maximum"
        if getattr(self, wrong) is not None:
            raise ValueError(f"`{wrong}` has no meaning for `{self.metric}`. Use the other bound")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is a better model."""
        return self.metric != "normalized_entropy"

    @property
    def bound(self) -> float:
        """The value threshold; a metric without one gets that of a model that knows nothing."""
        if self.higher_is_better:
            return self.minimum if self.minimum is not None else (0.0 if self.metric.startswith("ndcg") else 0.5)
        return self.maximum if self.maximum is not None else 1.0


class Evaluation(Section):
    """What is measured on the test split, on which slices, and which gates a model must pass."""

    slices: tuple[tuple[Name, ...], ...] = ((),)
    metrics: tuple[Annotated[str, StringConstraints(pattern=METRIC_PATTERN)], ...] = (
        "auc",
        "gauc",
        "ndcg@5",
        "normalized_entropy",
        "calibration",
    )
    gates: dict[Name, Gate] = Field(default_factory=lambda: {"default": Gate()})

    def gate(self, task: str) -> Gate:
        """The gate of a task: its own, or the default one."""
        return self.gates.get(task) or self.gates.get("default") or Gate()
