"""Columns of Python values as the arrays of a model's inputs; what can't be used is rejected with the place it has.

Missing is None: "" in texts, NaN in numbers, -1 in times, no member in sets, as in request examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import accumulate, chain
from operator import itemgetter
from types import NoneType
from typing import Any

import numpy as np

from serving.client.errors import RequestError
from serving.client.transport import TensorSpec

MISSING_TIME = -1
LARGEST = float(np.finfo(np.float32).max)

Place = Callable[[int], str]  # where the value of a position stands, for messages

_NUMBER = (bool, int, float, np.bool_, np.integer, np.floating, NoneType)
_WHOLE = (int, np.integer, NoneType)
_TEXT = (str, NoneType)
_LIST = (list, tuple, np.ndarray)


# === Tables ===


def to_columns(table: Any, names: Iterable[str], place: str) -> tuple[dict[str, Sequence[Any]], int]:
    """Rows as columns; columns stay.

    Args:
        table: list of dicts, or a dict of lists. With exactly these names.
        names: iterable of str. The columns.
        place: str. Where the table stands, for messages.

    Returns:
        The columns by name, and the number of rows.

    Raises:
        RequestError: when a name is unknown or missing, or columns differ in length.
    """
    names = tuple(names)
    if isinstance(table, Mapping):
        check_names(table, names, place)
        for name in names:
            if not isinstance(table[name], _LIST):
                raise refused(f"{place}.{name}", "a list", table[name], "Give one value a row.")
        sizes = {name: len(table[name]) for name in names}
        if len(set(sizes.values())) > 1:
            given = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise RequestError(
                f"{place}: columns of one length are expected. Received: {given}. Give None for missing values."
            )
        return dict(table), max(sizes.values(), default=0)
    if not isinstance(table, _LIST):
        raise refused(place, "a list of rows, or columns by name,", table, "Give [{name: value, ...}, ...].")
    known = set(names)
    for i, row in enumerate(table):
        if not isinstance(row, Mapping) or row.keys() != known:
            check_names(row, names, f"{place}[{i}]")
    if len(names) == 1:
        return {names[0]: [row[names[0]] for row in table]}, len(table)
    columns = zip(*map(itemgetter(*names), table), strict=True) if len(table) else ((),) * len(names)
    return dict(zip(names, columns, strict=True)), len(table)


def check_names(given: Any, names: Iterable[str], place: str) -> None:
    """Raises a RequestError when a mapping has not exactly these names."""
    names = tuple(names)
    if not isinstance(given, Mapping):
        raise refused(place, "a mapping of names to values", given, "Give {name: value, ...}.")
    for name in given:
        if name not in names:
            near = get_close_matches(str(name), names, 1)
            cure = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(sorted(names)) or 'none'}."
            raise RequestError(f"{place}: names that the model takes are expected. Received: `{name}`. {cure}")
    missing = [name for name in names if name not in given]
    if missing:
        raise RequestError(
            f"{place}.{missing[0]}: a value is expected. Received: nothing"
            + (f", nor for {', '.join(missing[1:])}" if missing[1:] else "")
            + ". Give None where the value is missing, [] where there is no event."
        )


# === Columns ===


def to_array(values: Sequence[Any], spec: TensorSpec, place: Place) -> np.ndarray:
    """A column as an array.

    Args:
        values: sequence. One value per row.
        spec: TensorSpec. The input. One of rank 3 takes sets of texts.
        place: function. From a row to its place, for messages.

    Returns:
        float32, int64 or object (texts) [n]; object [n, 1 + S] for sets, with "" before and behind their members: a
        server that batches requests pads them with the first value, and "" is no member.

    Raises:
        RequestError: when a value is none of the input's type.
    """
    if spec.rank == 3:
        return _sets(values, place)
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise refused(place(0), "one value", values[0], "Give a list of single values.")
    return {"DT_FLOAT": _numbers, "DT_INT64": _times, "DT_STRING": _texts}[spec.dtype](values, place)


def _numbers(values: Sequence[Any], place: Place) -> np.ndarray:
    if not (isinstance(values, np.ndarray) and values.dtype.kind in "biuf"):
        _check_types(values, _NUMBER, "a number or None", "Give the number, not its text.", place)
    wide = _array(values, np.float64, place)
    beyond = np.abs(wide) > LARGEST
    if beyond.any():
        i = int(np.argmax(beyond))
        raise refused(place(i), "a finite number or None", values[i], "Give None where it is missing.")
    return wide.astype(np.float32)


def _times(values: Sequence[Any], place: Place) -> np.ndarray:
    if not (isinstance(values, np.ndarray) and values.dtype.kind in "iu"):
        _check_types(values, _WHOLE, "a whole number of epoch milliseconds or None", "Give int(...).", place)
    times = _array([MISSING_TIME if value is None else value for value in values], np.int64, place)
    # seconds of the years 2001 to 5138, and what is later than that: what no log is trained on
    beyond = (times < MISSING_TIME) | ((times >= 10**9) & (times < 10**11)) | (times >= 10**14)
    if beyond.any():
        i = int(np.argmax(beyond))
        raise refused(place(i), "epoch milliseconds or None", values[i], "Convert it, as 1650813567259 for April 2022.")
    return times


def _array(values: Sequence[Any], dtype: type, place: Place) -> np.ndarray:
    try:
        return np.array(values, dtype)
    except OverflowError:
        i, value = max(enumerate(values), key=lambda at: abs(at[1]) if isinstance(at[1], int) else 0)
        raise refused(place(i), "a number of 64 bits", value, "Give None where it is missing.") from None


def _texts(values: Sequence[Any], place: Place) -> np.ndarray:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    _check_types(values, _TEXT, "a text or None", "Give it as the log has it: str(value) for a number.", place)
    texts = np.array([value or "" for value in values], object)
    _check_unicode(texts.tolist(), place)
    return texts


def _sets(values: Sequence[Any], place: Place) -> np.ndarray:
    _check_types(values, (*_LIST, NoneType), "a list of texts", "Give [] for none.", place)
    sets = [() if value is None else tuple(value) for value in values]
    members, ends = list(chain.from_iterable(sets)), list(accumulate(map(len, sets)))
    of_member: Place = lambda m: place(int(np.searchsorted(ends, m, side="right")))  # noqa: E731
    _check_types(members, (str,), "a list of texts", "Leave missing members out.", of_member)
    _check_unicode(members, of_member)
    array = np.full((len(sets), 1 + max(map(len, sets), default=0)), "", object)
    for row, given in zip(array, sets, strict=True):
        row[1 : 1 + len(given)] = given
    return array


def _check_types(values: Sequence[Any], kinds: tuple[type, ...], expected: str, cure: str, place: Place) -> None:
    """By the distinct types: a check of each value would take longer than all else."""
    wrong = {
        kind
        for kind in set(map(type, values))
        if not issubclass(kind, kinds) or (kind is bool and bool not in kinds)  # which Python takes for an int
    }
    if wrong:
        i, value = next((i, value) for i, value in enumerate(values) if type(value) in wrong)
        raise refused(place(i), expected, value, cure)


def _check_unicode(texts: Sequence[str], place: Place) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        i, text = next((i, text) for i, text in enumerate(texts) if any("\ud800" <= c <= "\udfff" for c in text))
        raise refused(place(i), "a text in UTF-8", text, "Decode it with its own encoding.") from None


def refused(place: str, expected: str, received: Any, cure: str) -> RequestError:
    """The error of a value: where, what was expected, what came and the cure."""
    text = repr(received)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return RequestError(f"{place}: {expected} is expected. Received: {shown} ({type(received).__name__}). {cure}")
