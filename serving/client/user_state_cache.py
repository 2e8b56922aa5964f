"""What keeps users' encoded contexts between requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from serving.client.transport import Tensors


class UserStateKey(NamedTuple):
    """What a context follows from; another value of any of them is another context."""

    model: str
    version: int
    user: str
    history_version: str


class UserStateCache(ABC):
    """Keeps contexts for a time. Safe to use from many threads at once; it never makes a request fail."""

    @abstractmethod
    def get(self, key: UserStateKey) -> Tensors | None:
        """The context's tensors by name, or None where it is not there."""

    @abstractmethod
    def put(self, key: UserStateKey, context: Tensors) -> None:
        """Keeps a context."""
