"""User states in Redis, for many processes."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from transform.extras import require_extra

require_extra("redis", "serving.client.redis_user_state_cache", "redis")

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.client.transport import Tensors
from serving.client.user_state_cache import UserStateCache, UserStateKey

_log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds without Redis after a failure, so that its time-outs don't add up


class RedisUserStateCache(UserStateCache):
    """Keeps user states in Redis under a time to live.

    Redis decides what goes when its memory is full: give it `maxmemory-policy allkeys-lru`. Where it fails, the user is
    encoded again, and Redis is not asked for a second; the log has one line when it goes and one when it is back.

    Args:
        url: str. As `redis://host:6379/0`, or `rediss://` for TLS.
        ttl: float. Seconds after which a user state is forgotten. Defaults to ten minutes.
        prefix: str. Before all keys: one for each set of models that may have the same names and versions. Defaults to
            `"onerank"`.
        timeout: float. Seconds that Redis may take to connect or to answer. Defaults to 0.05.

    Attributes:
        hits: int.
        misses: int. Failures too.
        failures: int.
    """

    def __init__(self, url: str, ttl: float = 600.0, prefix: str = "onerank", timeout: float = 0.05):
        self.hits = self.misses = self.failures = 0
        self._redis = redis.Redis.from_url(
            url,
            protocol=2,  # which servers before Redis 6 know too
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=timeout,
            socket_timeout=timeout,
        )
        self._milliseconds = max(1, round(ttl * 1000))
        self._prefix = prefix
        self._lock = threading.Lock()
        self._away_until: float | None = None

    def get(self, key: UserStateKey) -> Tensors | None:
        """The user state, or None where Redis has none or fails."""
        user_state = None
        if not self._paused():
            try:
                packed = self._redis.get(self._name(key))
                self._succeeded()
                user_state = None if packed is None else _unpack(packed)
            except (redis.RedisError, OSError) as error:
                self._failed(error)
            except (ValueError, TypeError) as error:  # the next `put` writes over it
                _log.warning("Redis holds no user state under %s: %s.", self._name(key), error)
        with self._lock:
            self.hits += user_state is not None
            self.misses += user_state is None
        return user_state

    def put(self, key: UserStateKey, user_state: Tensors) -> None:
        """Keeps a user state, where Redis can."""
        if not self._paused():
            try:
                self._redis.set(self._name(key), _pack(user_state), px=self._milliseconds)
                self._succeeded()
            except (redis.RedisError, OSError) as error:
                self._failed(error)

    def _name(self, key: UserStateKey) -> str:
        return f"{self._prefix}:{json.dumps(key)}"

    def _paused(self) -> bool:
        until = self._away_until
        return until is not None and time.monotonic() < until

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self.failures += 1
            first, self._away_until = self._away_until is None, time.monotonic() + PAUSE
        if first:
            _log.warning("Redis fails (%s: %s): users are encoded again.", type(error).__name__, error)

    def _succeeded(self) -> None:
        if self._away_until is not None:
            with self._lock:
                back, self._away_until = self._away_until is not None, None
            if back:
                _log.warning("Redis is back.")


def _pack(user_state: Tensors) -> bytes:
    """A line of JSON with names, dtypes and shapes, then the tensors' bytes: no pickle, as others may write there."""
    header = [[name, array.dtype.name, array.shape] for name, array in user_state.items()]
    return b"\n".join([json.dumps(header).encode(), b"".join(array.tobytes() for array in user_state.values())])


def _unpack(packed: Any) -> Tensors:
    header, _, content = packed.partition(b"\n")
    user_state, start = {}, 0
    for name, dtype_name, shape in json.loads(header):
        dtype, size = np.dtype(dtype_name), int(np.prod(shape))
        user_state[name] = np.frombuffer(content, dtype, size, start).reshape(shape)
        start += size * dtype.itemsize
    return user_state
