"""The business formula that fuses task probabilities into one score: a product of powers."""

from __future__ import annotations

import re

_TERM = re.compile(r"^(?P<task>[a-z][a-z0-9_]*)(?:\s*\^\s*(?P<power>-?\d+(?:\.\d+)?))?$")


def parse_score(formula: str) -> dict[str, float]:
    """Reads a formula such as `click^0.2 * long_view * like^0.5`.

    Args:
        formula: str. Terms joined by `*`; a term is a task's name, or a task's name, `^` and a number.

    Returns:
        The power of each task, in the order of the formula.

    Raises:
        ValueError: when a term can't be read or a task stands twice.
    """
    powers: dict[str, float] = {}
    for term in formula.split("*"):
        match = _TERM.match(term.strip())
        if not match:
            raise ValueError(
                f"a product of powers of tasks, as `click^0.2 * like`, is expected. Received the term `{term.strip()}`"
            )
        task = match["task"]
        if task in powers:
            raise ValueError(f"each task may stand once. Received `{task}` twice. Add the powers up")
        powers[task] = float(match["power"] or 1.0)
    return powers
