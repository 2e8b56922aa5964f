"""What a request is addressed to."""

from __future__ import annotations

from typing import NamedTuple


class ModelRef(NamedTuple):
    """What a request is addressed to.

    Args:
        model: str.
        number: int, optional. The version. Defaults to the newest.
        label: str, optional. The version's label, instead of its number.
    """

    model: str
    number: int | None = None
    label: str | None = None
