"""`UserStateCache`: keeps user states between requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from serving.client.transport import Tensors


class UserStateKey(NamedTuple):
    """What a user state depends on; another value of any of them is another user state."""

    model: str
    version: int
    user: str
    history_version: str


class UserStateCache(ABC):
    """Keeps user states for a time. Safe to use from many threads at once; it never makes a request fail."""

    @abstractmethod
    def get(self, key: UserStateKey) -> Tensors | None:
        """The user state's tensors by name, or None if it is not there."""

    @abstractmethod
    def put(self, key: UserStateKey, user_state: Tensors) -> None:
        """Keeps a user state."""
