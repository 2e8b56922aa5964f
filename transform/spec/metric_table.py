"""The metrics: each is one row of a table, which the spec, gates, early stopping, Evaluator, report and docs read.

`trainer.metrics.ranking_metrics` has the function that computes a row, registered under the row's name: a new metric is
a row here and a function there. A metric of the user's own is a `Metric` with a function, named by its import path.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from transform.errors import SpecError
from transform.import_path import IMPORT_PATH, import_object, is_import_path

COLUMNS = ("labels", "scores", "groups", "weights")
"""What a metric is computed from: arrays [rows] of the labelled candidates of one task."""

_AT_K = "@k"  # at the end of the name of a family


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    Args:
        name: str. In the table what the spec calls it; `ndcg@k` is a family, of which `ndcg@5` is one. For a metric of
            your own, what tables and plots call it: the spec gives its import path.
        direction: str. Which values are better: `higher` ones, `lower` ones, or those nearer to the `target`, which is
            `best`. `none` for a plain count.
        best: float. The value of a perfect model; no model is better. Defaults to NaN, for counts.
        bound: float. The value of a model that knows nothing, which a gate asks for that gives no bound. Defaults to
            NaN, for metrics without a direction.
        function: callable, optional. Computes a metric of your own: takes some of `labels` (0 or 1), `scores`
            (probabilities), `groups` (what names the request) and `weights` (above 0), arrays [rows] of the labelled
            candidates of one task, by these names, and returns a number, NaN where it is undefined. It is not called
            without rows, or when a score is not finite: the metric is NaN then. A metric of the table has none here.
        title: str. What people read. Defaults to the name.
        role: str. `chosen`: the spec may ask for it; `always`: reported in any case, and not to be asked for; `count`:
            the same for a count. Defaults to `chosen`.
        in_epochs: bool. Whether it is measured on the eval split after each epoch. Defaults to False.
        k: int, optional. Of a member of a family.

    Raises:
        ValueError: when a direction is unknown, a value that belongs to it is missing, or the function takes something
            else.

    Example:
    ```python
    def recall_at_half(labels, scores):
        return float(np.mean(scores[labels > 0.5] > 0.5)) if labels.any() else math.nan

    recall = Metric("recall at 0.5", direction="higher", best=1.0, bound=0.0, function=recall_at_half)
    ```
    """

    name: str
    direction: Literal["higher", "lower", "target", "none"]
    best: float = math.nan
    bound: float = math.nan
    function: Callable[..., float] | None = None
    title: str = ""
    role: Literal["chosen", "always", "count"] = "chosen"
    in_epochs: bool = False
    k: int | None = None

    def __post_init__(self) -> None:
        needed = {"higher": ("best", "bound"), "lower": ("best", "bound"), "target": ("best",), "none": ()}
        if self.direction not in needed:
            raise ValueError(
                f"`direction` of metric `{self.name}` should be one of {', '.join(needed)}. "
                f"Received: `direction={self.direction!r}`."
            )
        for name in needed[self.direction]:
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(
                    f"`{name}` of metric `{self.name}` should be a number, as `direction` is {self.direction}. "
                    f"Received: `{name}={value}`."
                )
        if self.function is not None:
            unknown = [
                parameter.name
                for parameter in inspect.signature(self.function).parameters.values()
                if parameter.default is parameter.empty and parameter.name not in COLUMNS
            ]
            if unknown:
                raise ValueError(
                    f"`function` of metric `{self.name}` should take some of {', '.join(COLUMNS)}. "
                    f"Received: one that takes {', '.join(unknown)}."
                )
        if not self.title:
            object.__setattr__(self, "title", self.name)

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is a better model."""
        return self.direction == "higher"

    @property
    def has_direction(self) -> bool:
        """Whether a gate or early stopping can judge by it."""
        return self.direction in ("higher", "lower")

    def is_better(self, value: float, before: float) -> bool | None:
        """Whether a value is better than the one before; None when none is, or either is undefined."""
        if math.isnan(value) or math.isnan(before) or value == before or self.direction == "none":
            return None
        if self.direction == "target":
            return abs(value - self.best) < abs(before - self.best)
        return (value > before) == self.higher_is_better


METRICS = (
    Metric("auc", "higher", best=1.0, bound=0.5, title="AUC", in_epochs=True),
    Metric("gauc", "higher", best=1.0, bound=0.5, title="GAUC", in_epochs=True),
    Metric("ndcg@k", "higher", best=1.0, bound=0.0, title="NDCG@k"),
    Metric("normalized_entropy", "lower", best=0.0, bound=1.0, title="norm. entropy", in_epochs=True),
    Metric("calibration", "target", best=1.0, title="calibration", in_epochs=True),
    Metric("log_loss", "lower", best=0.0, bound=math.log(2), title="log loss", role="always"),
    Metric("example_count", "none", title="candidates", role="count"),
    Metric("positive_count", "none", title="positives", role="count"),
    Metric("group_count", "none", title="requests", role="count"),
    Metric("one_class_groups", "none", title="requests of one class", role="count"),
)
"""The table. Its order is that of messages and docs."""


def find_metric(name: str, where: str = "metric") -> Metric:
    """The metric of a name.

    Args:
        name: str. A name of the table, `ndcg@5` for a member of a family, or the import path of a metric of the user's
            own.
        where: str. The place in the spec, for messages. Defaults to `"metric"`.

    Returns:
        The metric; its `name` is the given one.

    Raises:
        SpecError: when there is no such metric, or what the path leads to is none.
    """
    row = _row(name)
    if row is not None:
        k = int(name.rpartition("@")[2]) if row.name.endswith(_AT_K) else None
        title = row.title if k is None else f"{row.title.removesuffix('k')}{k}"
        return replace(row, name=name, title=title, k=k)
    if not is_import_path(name):
        raise SpecError(f"{where}: {metric_expected()}. Received: `{name}`.")
    found = import_object(name, where)
    if not isinstance(found, Metric) or found.function is None:
        received = "one without" if isinstance(found, Metric) else f"of type {type(found).__name__}"
        raise SpecError(
            f"{where}: the import path of a `Metric` with a function is expected. Received: `{name}`, {received}. "
            "Write `from onerank import Metric` and `name = Metric(..., function=...)` in the module."
        )
    return replace(found, name=name, title=found.title)


def row_name(name: str) -> str:
    """The name of the row that a metric of the table belongs to: `ndcg@k` for `ndcg@5`."""
    row = _row(name)
    if row is None:
        raise SpecError(f"metric: {metric_expected()}. Received: `{name}`.")
    return row.name


def names_of(role: str) -> tuple[str, ...]:
    """The names of the rows of a role, in the table's order."""
    return tuple(row.name for row in METRICS if row.role == role)


def metric_expected() -> str:
    """What a message says where a metric is expected."""
    names = [name.replace(_AT_K, "@5 (or another k)") for name in names_of("chosen")]
    return f"a metric is expected: {_listed(names)}, or the import path of your own, as `package.module:name`"


def direction_expected() -> str:
    """What a message says where the metric must have a direction."""
    names = [row.name for row in METRICS if row.role == "chosen" and row.has_direction]
    return f"a metric with a direction is expected: {_listed(names)}"


def _row(name: str) -> Metric | None:
    return next((row for row in METRICS if re.fullmatch(_pattern(row), name)), None)


def _pattern(row: Metric) -> str:
    if row.name.endswith(_AT_K):
        return rf"{re.escape(row.name.removesuffix('k'))}[1-9]\d*"
    return re.escape(row.name)


def _listed(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


METRIC_PATTERN = f"^({'|'.join([*(_pattern(row) for row in METRICS if row.role == 'chosen'), IMPORT_PATH])})$"
"""What the spec may ask for."""
