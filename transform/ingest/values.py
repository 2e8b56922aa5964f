"""Labels and weights of the raw files as values; what can't be used is rejected with the row that it stands in."""

from __future__ import annotations

import math

from transform.errors import DataError
from transform.feature_types.numeric import LARGEST

MISSING = math.nan


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
