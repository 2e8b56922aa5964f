"""A small thread pool with a bounded queue before it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc

from serving.server.errors import RequestError

T = TypeVar("T")
NO_DEADLINE = math.inf


class WorkQueue:
    """Runs work on a few threads, rejects it when too much waits, and never starts what is late.

    Args:
        threads: int.
        most_waiting: int. Pieces of work that may wait for a thread.
    """

    def __init__(self, threads: int, most_waiting: int):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="serving")
        self._threads = threads
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._unfinished = 0

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return max(0, self._unfinished - self._threads)

    async def run(self, work: Callable[[], T], deadline: float = NO_DEADLINE, bounded: bool = True) -> T:
        """Runs work on a thread.

        Args:
            work: callable.
            deadline: float. In seconds of `time.monotonic`. Defaults to none.
            bounded: bool. Refuse it when too much waits. False for what belongs to a request that was let in before.

        Returns:
            What the work returns.

        Raises:
            RequestError: RESOURCE_EXHAUSTED; DEADLINE_EXCEEDED, whether the work had begun or not.
        """
        if bounded and self._unfinished >= self._threads + self._most_waiting:
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._most_waiting} requests wait already. Try again later."
            )
        abandoned = threading.Event()
        with self._lock:
            self._unfinished += 1
        # The piece stays in the count until a thread has dropped it: the pool holds it, and its request, until then.
        try:
            future = asyncio.wrap_future(self._pool.submit(self._work, work, deadline, abandoned))
            future.add_done_callback(_retrieve)
        except RuntimeError as error:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down") from error
        try:
            return await asyncio.wait_for(
                asyncio.shield(future), None if deadline == NO_DEADLINE else max(0.0, deadline - time.monotonic())
            )
        except asyncio.TimeoutError as error:
            raise late() from error
        finally:
            abandoned.set()

    def close(self) -> bool:
        """Takes no more work and drops what waits.

        Returns:
            Whether all threads are idle.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        return self._unfinished == 0

    def _work(self, work: Callable[[], T], deadline: float, abandoned: threading.Event) -> T:
        try:
            if abandoned.is_set() or time.monotonic() > deadline:
                raise late()
            return work()
        finally:
            with self._lock:
                self._unfinished -= 1


def late() -> RequestError:
    """The error of a request whose deadline has passed."""
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "the request's deadline passed before it was answered")


def _retrieve(future: asyncio.Future) -> None:
    """Asyncio would log that an abandoned future's exception was never retrieved."""
    if not future.cancelled():
        future.exception()
