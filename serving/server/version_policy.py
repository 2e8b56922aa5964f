"""Which of a model's versions are served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from serving.server.errors import ServerError


@dataclass(frozen=True)
class VersionPolicy:
    """Which of a model's versions are served.

    Args:
        latest: int, optional. This many of the newest that load. None for no limit. Defaults to 1.
        specific: tuple of int. Only these. Defaults to all.
    """

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Reads `latest`, `latest:2`, `all` or `specific:3,5`.

        Raises:
            ServerError: when the text is none of them.
        """
        kind, _, numbers = text.partition(":")
        if text == "all":
            return cls(latest=None)
        if kind == "latest" and (numbers.isdecimal() and int(numbers) > 0 or text == kind):
            return cls(latest=int(numbers or 1))
        if kind == "specific" and re.fullmatch(r"\d+(,\d+)*", numbers):
            return cls(latest=None, specific=tuple(map(int, numbers.split(","))))
        raise ServerError(
            "--version_policy: `latest`, `latest:2`, `all` or `specific:3,5` is expected. "
            f"Received: {text!r}. Give one of them."
        )

    def candidates(self, versions: Iterable[int]) -> list[int]:
        """Those that may be served, the newest first."""
        return sorted((v for v in versions if not self.specific or v in self.specific), reverse=True)
