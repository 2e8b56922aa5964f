"""Contexts in this process's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cachetools import TTLCache

from serving.client.transport import Tensors
from serving.client.user_state_cache import UserStateCache, UserStateKey


class LruUserStateCache(UserStateCache):
    """Keeps the contexts that were used last, within a budget of bytes.

    Args:
        max_bytes: int. Of all tensors together. A context above it is not kept. Defaults to 64 MiB.
        ttl: float. Seconds after which a context is forgotten. Defaults to ten minutes.
        timer: function. The time in seconds. Defaults to `time.monotonic`.

    Attributes:
        hits: int.
        misses: int.
        evictions: int. Contexts that made room for others; those past their time don't count.
    """

    def __init__(self, max_bytes: int = 64 << 20, ttl: float = 600.0, timer: Callable[[], float] = time.monotonic):
        self.hits = self.misses = self.evictions = 0
        self._contexts = _Contexts(self, max_bytes, ttl, timer)
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """What the contexts take now."""
        with self._lock:
            return int(self._contexts.currsize)

    def __len__(self) -> int:
        with self._lock:
            return len(self._contexts)

    def get(self, key: UserStateKey) -> Tensors | None:
        """The context, which is the latest used from now on."""
        with self._lock:
            context = self._contexts.get(key)
            self.hits += context is not None
            self.misses += context is None
            return context

    def put(self, key: UserStateKey, context: Tensors) -> None:
        """Keeps a context, for which those go that were not used for longest."""
        if _bytes(context) <= self._contexts.maxsize:
            with self._lock:
                self._contexts[key] = context


class _Contexts(TTLCache):
    def __init__(self, owner: LruUserStateCache, max_bytes: int, ttl: float, timer: Callable[[], float]):
        super().__init__(max_bytes, ttl, timer=timer, getsizeof=_bytes)
        self._owner = owner

    def popitem(self) -> tuple[Any, Any]:
        self._owner.evictions += 1
        return super().popitem()


def _bytes(context: Tensors) -> int:
    return sum(array.nbytes for array in context.values())
