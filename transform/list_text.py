"""Lists in the raw files as texts: joined by a separator, or as a list column of a Parquet file gives them."""

from __future__ import annotations

from collections.abc import Iterable

_MARK = "\x1f"  # before each member of a list that came as one


def join_list(members: Iterable[str]) -> str:
    """The text of a list whose members may hold any separator."""
    return "".join(_MARK + member for member in members)


def split_list(text: str, separator: str) -> list[str]:
    """The members of a list: of a text with separators, or of a list column of a Parquet file."""
    if not text:
        return []
    return text[1:].split(_MARK) if text.startswith(_MARK) else text.split(separator)
