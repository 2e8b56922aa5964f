"""Which tests take long: what they are marked with, and which fixtures make them so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TIERS = ("slow", "server", "pipeline")
TIER_OF_FIXTURE: dict[str, str] = {}


def costly(tier: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a fixture's function that takes seconds: a test that asks for the fixture is of that tier."""

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        TIER_OF_FIXTURE[function.__name__] = tier
        return function

    return noted
