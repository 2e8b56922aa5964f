"""User states in this process's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cachetools import TTLCache

from serving.client.transport import Tensors
from serving.client.user_state_cache import UserStateCache, UserStateKey


class LruUserStateCache(UserStateCache):
    """Keeps the user states that were used last, within a budget of bytes.

    Args:
        max_bytes: int. Of all tensors together. A user state above it is not kept. Defaults to 64 MiB.
        ttl: float. Seconds after which a user state is forgotten. Defaults to ten minutes.
        timer: function. The time in seconds. Defaults to `time.monotonic`.

    Attributes:
        hits: int.
        misses: int.
        evictions: int. User states that made room for others; those past their time don't count.
    """

    def __init__(self, max_bytes: int = 64 << 20, ttl: float = 600.0, timer: Callable[[], float] = time.monotonic):
        self.hits = self.misses = self.evictions = 0
        self._user_states = _UserStates(self, max_bytes, ttl, timer)
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """What the user states take now."""
        with self._lock:
            return int(self._user_states.currsize)

    def __len__(self) -> int:
        with self._lock:
            return len(self._user_states)

    def get(self, key: UserStateKey) -> Tensors | None:
        """The user state, which is the latest used from now on."""
        with self._lock:
            user_state = self._user_states.get(key)
            self.hits += user_state is not None
            self.misses += user_state is None
            return user_state

    def put(self, key: UserStateKey, user_state: Tensors) -> None:
        """Keeps a user state, for which those go that were not used for longest."""
        if _bytes(user_state) <= self._user_states.maxsize:
            with self._lock:
                self._user_states[key] = user_state


class _UserStates(TTLCache):
    def __init__(self, owner: LruUserStateCache, max_bytes: int, ttl: float, timer: Callable[[], float]):
        super().__init__(max_bytes, ttl, timer=timer, getsizeof=_bytes)
        self._owner = owner

    def popitem(self) -> tuple[Any, Any]:
        self._owner.evictions += 1
        return super().popitem()


def _bytes(user_state: Tensors) -> int:
    return sum(array.nbytes for array in user_state.values())
