"""The mistakes a user can make, each with its cure in the text."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")


class UserError(Exception):
    """A mistake in what the user brought; its text says where, what was expected, what came and the cure."""


class SpecError(UserError):
    """The YAML file that describes the ranking problem is wrong."""


class DataError(UserError):
    """The data do not fit the spec."""


class PipelineError(UserError):
    """A pipeline was asked for something that it can't do with what it was given."""


_IN_TRACE = re.compile(r"(?:SpecError|DataError|PipelineError): (?P<text>.*?)(?: \[while running|\n\S|\Z)", re.DOTALL)

_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded|file too large|disk is full", re.IGNORECASE)


def reports_user_errors(main: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
    """Decorates a program's `main`: what a user has to correct is printed as one message, and the exit code is 1."""

    @functools.wraps(main)
    def reporting(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except Exception as error:
            message = find_user_error(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1

    return reporting


def find_user_error(error: BaseException) -> str | None:
    """The text of the user's mistake behind `error`, or None when there is none.

    Beam and TFX hand on an exception of a worker as text inside one of their own, so the chain of causes is
    searched first and the texts after it. A full disk counts as a mistake too.

    Args:
        error: BaseException. What was caught.

    Returns:
        The message that the user should read, or None.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link).split(" [while running")[0]
    for link in chain:
        found = _IN_TRACE.findall(str(link))
        if found:
            return found[-1].strip()
    for link in chain:
        full = _DISK_FULL.search(str(link))
        if full:
            return (
                f"disk: room for what is written is expected. Received: {full[0]}. Make room and start again: what is "
                "finished is kept, and training goes on from its last checkpoint."
            )
    return None
