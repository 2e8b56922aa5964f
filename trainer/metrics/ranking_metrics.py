"""Exact ranking metrics in numpy: the same numbers in training, in the evaluation and in the gates.

Rows are candidates: a label (0 or 1), a score, the group (the request) they belong to and a weight. A row of weight 0
has no label and is dropped, a row of weight w counts as w rows; counts are of rows, whatever their weights. A metric
that is undefined on the rows is NaN, and so is every metric of labels or scores that are not finite: a broken model
never gets a number that looks fine. A weight that is negative or not finite is rejected with a `DataError`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transform.errors import DataError, SpecError
from transform.spec.metric_table import COLUMNS, find_metric, row_name

Array = NDArray[Any]

PROBABILITY_FLOOR = 1e-7
"""Probabilities are clipped to [floor, 1 - floor] before a logarithm is taken."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Labelled candidates as columns, what every metric is computed from.

    Args:
        labels: array of shape [rows]. 1 is a positive.
        scores: array of shape [rows]. Probabilities.
        groups: array of shape [rows]. What names the request of each row; any sortable type.
        weights: array of shape [rows]. Above 0.
    """

    labels: Array
    scores: Array
    groups: Array
    weights: Array

    @classmethod
    def observed(cls, labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None) -> Rows:
        """The rows that have a label: those of weight 0 are dropped, and any shape becomes one column.

        Args:
            labels: array.
            scores: array of as many values.
            groups: array of as many values.
            weights: array of as many values, or None, which is 1 for all. 0 where the label is missing.

        Returns:
            The rows.

        Raises:
            DataError: when a weight is negative or not finite.
        """
        return cls(*_observed(weights, labels, scores, groups))

    @classmethod
    def concatenate(cls, parts: Iterable[Rows]) -> Rows:
        """All rows of some parts, in their order; at least one part is needed."""
        columns = zip(*((part.labels, part.scores, part.groups, part.weights) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def __len__(self) -> int:
        return len(self.labels)


_Function = TypeVar("_Function", bound=Callable[..., float])
_FUNCTIONS: dict[str, Callable[..., float]] = {}


def _computes(row: str) -> Callable[[_Function], _Function]:
    """Decorates the function that computes a row of `transform.spec.metric_table`.

    It gets by name what it takes of `labels`, `scores`, `groups` and `weights`, and of a family the `k`.
    """

    def register(function: _Function) -> _Function:
        _FUNCTIONS[row] = function
        return function

    return register


# === Ranking ===


@_computes("auc")
def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: how often a positive is scored above a negative, a tie counting half.

    Args:
        labels: array of 0 and 1.
        scores: array of as many values.
        weights: array of as many values, or None, which is 1 for all.

    Returns:
        The AUC, or NaN when positives or negatives are missing.
    """
    labels, scores, weights = _observed(weights, labels, scores)
    if not _usable(labels, scores):
        return np.nan
    by_group = _auc_by_group(labels, scores, np.zeros(len(labels), np.int8), weights)
    return float(by_group.values[0])


@_computes("gauc")
def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The AUC inside groups, averaged with the weight of their rows (their number of impressions) as weight.

    Groups of one class have no AUC and are skipped; `one_class_groups` counts them.

    Args:
        labels: array of 0 and 1.
        scores: array of as many values.
        groups: array of as many values. The request of each row.
        weights: array of as many values, or None, which is 1 for all.

    Returns:
        The mean, or NaN when no group holds both classes.
    """
    labels, scores, groups, weights = _observed(weights, labels, scores, groups)
    if not _usable(labels, scores):
        return np.nan
    by_group = _auc_by_group(labels, scores, groups, weights)
    defined = ~np.isnan(by_group.values)
    return float(np.average(by_group.values[defined], weights=by_group.weights[defined])) if defined.any() else np.nan


@_computes("ndcg@k")
def ndcg(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int, weights: ArrayLike | None = None) -> float:
    """Normalised discounted cumulative gain at k, averaged over groups; all-negative groups are skipped.

    The gain is the label and the discount is logarithmic. Candidates with equal scores get the expected gain over all
    their orders, so that a model which scores everything alike is not rewarded for the order of the log. A group counts
    with the mean weight of its rows.

    Args:
        labels: array of 0 and 1.
        scores: array of as many values.
        groups: array of as many values. The request of each row.
        k: int. Only the first k places count.
        weights: array of as many values, or None, which is 1 for all.

    Returns:
        The mean, or NaN when no group holds a positive.
    """
    labels, scores, groups, weights = _observed(weights, labels, scores, groups)
    if not _usable(labels, scores):
        return np.nan
    (gains, weights), layout = _sort([labels, weights], -scores, groups)
    places = np.arange(len(gains)) - np.repeat(layout.group_starts, layout.group_sizes)
    discounts = np.where(places < k, 1.0 / np.log2(places + 2.0), 0.0)
    mean_gains = np.add.reduceat(gains, layout.tie_starts) / layout.tie_sizes
    achieved = mean_gains * np.add.reduceat(discounts, layout.tie_starts)
    (best,), _ = _sort([labels], -labels.astype(np.float64), groups)
    ideal = np.add.reduceat(best * discounts, layout.group_starts)
    found = ideal > 0
    if not found.any():
        return np.nan
    of_group = np.add.reduceat(weights, layout.group_starts) / layout.group_sizes
    return float(np.average(layout.sum_over_ties(achieved)[found] / ideal[found], weights=of_group[found]))


# === Probabilities ===


@_computes("log_loss")
def log_loss(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean binary cross entropy, of probabilities clipped by `PROBABILITY_FLOOR`; NaN without rows."""
    labels, scores, weights = _observed(weights, labels, scores)
    if not _usable(labels, scores):
        return np.nan
    return _mean(_cross_entropy(labels, scores), weights)


@_computes("normalized_entropy")
def normalized_entropy(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The log loss over that of predicting the rows' own positive rate; NaN when all labels are equal."""
    labels, scores, weights = _observed(weights, labels, scores)
    if not _usable(labels, scores) or labels.min() == labels.max():
        return np.nan
    of_rate = _cross_entropy(labels, _mean(labels, weights))
    return _mean(_cross_entropy(labels, scores), weights) / _mean(of_rate, weights)


@_computes("calibration")
def calibration(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The mean prediction over the mean label; NaN without positives."""
    labels, scores, weights = _observed(weights, labels, scores)
    if not _usable(labels, scores) or not labels.any():
        return np.nan
    return _mean(scores, weights) / _mean(labels, weights)


# === Counts ===


@_computes("example_count")
def example_count(labels: ArrayLike, weights: ArrayLike | None = None) -> int:
    """The number of labelled rows."""
    labels, _ = _observed(weights, labels)
    return len(labels)


@_computes("positive_count")
def positive_count(labels: ArrayLike, weights: ArrayLike | None = None) -> int:
    """The number of positives."""
    labels, _ = _observed(weights, labels)
    return int(np.count_nonzero(_positive(labels)))


@_computes("group_count")
def group_count(groups: ArrayLike, weights: ArrayLike | None = None) -> int:
    """The number of groups that have a labelled row."""
    groups, _ = _observed(weights, groups)
    return len(np.unique(groups))


@_computes("one_class_groups")
def one_class_groups(labels: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None) -> int:
    """The number of groups without a positive or without a negative: those that GAUC skips."""
    labels, groups, _ = _observed(weights, labels, groups)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    positives = np.bincount(group, _positive(labels), len(sizes))
    return int(np.count_nonzero((positives == 0) | (positives == sizes)))


# === By name ===


def compute(metric: str, rows: Rows) -> float:
    """A metric by the name that the spec gives it.

    Args:
        metric: str. A name of `transform.spec.metric_table`, as `auc` or `ndcg@5`, or the import path of a metric of
            the user's own.
        rows: Rows.

    Returns:
        The value, NaN when it is undefined.

    Raises:
        SpecError: when there is no such metric, or one of the user's own returns no number.
    """
    found = find_metric(metric)
    columns: dict[str, Any] = {name: getattr(rows, name) for name in COLUMNS}
    if found.function is None:
        function = _FUNCTIONS[row_name(metric)]
        columns["k"] = found.k
    elif not _usable(rows.labels, rows.scores):
        return math.nan
    else:
        function = found.function
    value = function(**{name: columns[name] for name in inspect.signature(function).parameters if name in columns})
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SpecError(
            f"metric `{metric}`: a number is expected of its function. Received: {type(value).__name__}. Return a "
            "float, NaN where the metric is undefined."
        ) from None


# === Segments of sorted rows ===


class _Layout(NamedTuple):
    """Where groups, and ties inside them, lie in sorted rows: [groups] and [ties] arrays."""

    group_starts: Array
    group_sizes: Array
    tie_starts: Array
    tie_sizes: Array
    first_ties: Array

    def sum_over_ties(self, values: Array) -> Array:
        """Sums of [ties] by group."""
        return np.add.reduceat(values, self.first_ties)


class _ByGroup(NamedTuple):
    values: Array
    weights: Array


def _sort(columns: Sequence[Array], keys: Array, groups: Array) -> tuple[list[Array], _Layout]:
    """Sorts rows by group and key: returns columns (as float64) and where equal groups and keys lie."""
    order = np.lexsort((keys, groups))
    keys, groups = keys[order], groups[order]
    new_group = np.append(True, groups[1:] != groups[:-1])
    new_tie = new_group | np.append(True, keys[1:] != keys[:-1])
    group_starts, tie_starts = np.flatnonzero(new_group), np.flatnonzero(new_tie)
    layout = _Layout(
        group_starts,
        np.diff(group_starts, append=len(order)),
        tie_starts,
        np.diff(tie_starts, append=len(order)),
        np.flatnonzero(new_group[tie_starts]),
    )
    return [column[order].astype(np.float64) for column in columns], layout


def _auc_by_group(labels: Array, scores: Array, groups: Array, weights: Array) -> _ByGroup:
    """The AUC of each group from the negatives below each of its positives; NaN where a class is missing."""
    (positive, weights), layout = _sort([_positive(labels), weights], scores, groups)
    positives = np.add.reduceat(positive * weights, layout.tie_starts)
    negatives = np.add.reduceat((1 - positive) * weights, layout.tie_starts)
    below = np.cumsum(negatives) - negatives
    ties_in_group = np.diff(layout.first_ties, append=len(layout.tie_starts))
    below -= np.repeat(below[layout.first_ties], ties_in_group)
    won = layout.sum_over_ties(positives * (below + negatives / 2))
    all_positives, all_negatives = layout.sum_over_ties(positives), layout.sum_over_ties(negatives)
    pairs = all_positives * all_negatives
    values = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return _ByGroup(values, all_positives + all_negatives)


def _observed(weights: ArrayLike | None, *columns: ArrayLike) -> tuple[Array, ...]:
    """The columns, flat, and their weights, without rows of weight 0."""
    flat = [np.asarray(column).ravel() for column in columns]
    flat.append(np.ones(len(flat[0]), np.float32) if weights is None else np.asarray(weights).ravel())
    _check_weights(flat[-1])
    kept = flat[-1] > 0
    return tuple(column[kept] for column in flat)


def _check_weights(weights: Array) -> None:
    """A weight of NaN is no missing label: its row would leave the metrics without a word."""
    fine = np.isfinite(weights) & (weights >= 0)
    if not fine.all():
        first = int(np.argmin(fine))
        raise DataError(
            f"the weights of labels: finite numbers from 0 on are expected. Received: {weights[first]} in row {first}. "
            "Give a label that is missing the weight 0, and every other one a weight above 0."
        )


def _usable(labels: Array, scores: Array) -> bool:
    return bool(len(labels)) and bool(np.isfinite(labels).all()) and bool(np.isfinite(scores).all())


def _positive(labels: Array) -> Array:
    return labels > 0.5


def _mean(values: Array, weights: Array) -> float:
    return float(np.average(np.asarray(values, np.float64), weights=weights))


def _cross_entropy(labels: Array, probabilities: Array | float) -> Array:
    clipped = np.clip(np.asarray(probabilities, np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
