"""Where the project is."""

from __future__ import annotations

from pathlib import Path


def repository() -> Path:
    """The root of the project."""
    return Path(__file__).resolve().parents[2]
