"""Texts of the raw files as values; what can't be used is refused with the row that it stands in."""

from __future__ import annotations

import math
from typing import Any

from transform.errors import DataError
from transform.ingest.tables import split_list
from transform.spec.data_sections import Feature

MISSING = math.nan
MISSING_TIME = -1
LARGEST = 3.4028234663852886e38  # of a float32, which is what an example holds
# Seconds of the years 2001 to 5138, as milliseconds of early 1970 to 1973. Smaller times are those of simulations.
_SECONDS = range(10**9, 10**11)
_LATEST = 10**14  # milliseconds of the year 5138


def convert(feature: Feature, text: str, origin: str) -> Any:
    """The value of a feature.

    Args:
        feature: Feature.
        text: str. What the file holds; "" is missing.
        origin: str. Where it stands, for the message.

    Returns:
        By the feature's type str, a list of str, float (NaN when missing), or int epoch milliseconds (-1 when missing).

    Raises:
        DataError: when the text is no value of that type.
    """
    if feature.type == "categorical":
        return text
    if feature.type == "categorical_set":
        return [member for member in split_list(text, feature.separator) if member]
    if feature.type == "time":
        return parse_time(text, origin, feature.source_column) if text else MISSING_TIME
    if text == "":
        return MISSING
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if abs(value) > LARGEST:
        raise DataError(
            f"{origin}: a finite number is expected for feature `{feature.name}`. Received: `{text}`. "
            "Leave missing values empty, or make the feature categorical."
        )
    return value


def parse_label(text: str, origin: str, column: str) -> float:
    """0, 1, or NaN for nothing; raises a DataError for anything else."""
    if text == "":
        return MISSING
    try:
        value = float(text)
    except ValueError:
        value = MISSING
    if value not in (0.0, 1.0):
        raise DataError(
            f"{origin}: 0, 1 or nothing is expected in label column `{column}`. Received: `{text}`. "
            "Make the label binary before it is read."
        )
    return value


def parse_weight(text: str, origin: str, column: str) -> float:
    """A number from 0 on; raises a DataError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = MISSING
    if not 0 <= value <= LARGEST:
        raise DataError(
            f"{origin}: a number from 0 on is expected in `{column}` (request.weight). Received: `{text}`. "
            "Write 1 for an impression that counts once."
        )
    return value


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
