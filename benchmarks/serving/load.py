"""Load from threads of this process: as much as is answered, or so many requests a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

WORKERS = (1, 2, 4, 8)
GAIN = 1.05  # by which more workers have to raise the rate to be worth it


def closed_loop(ask: Callable[[], object], workers: int, seconds: float) -> list[float]:
    """Each worker asks again when it is answered.

    Args:
        ask: function. Sends a request and returns when it is answered.
        workers: int.
        seconds: float. No request begins later.

    Returns:
        The seconds that each answer took.
    """
    end = time.perf_counter() + seconds

    def work(_: int) -> list[float]:
        found = []
        while (started := time.perf_counter()) < end:
            ask()
            found.append(time.perf_counter() - started)
        return found

    with ThreadPoolExecutor(workers) as pool:
        return [latency for found in pool.map(work, range(workers)) for latency in found]


def highest_rate(ask: Callable[[], object], seconds: float, workers: Sequence[int] = WORKERS) -> tuple[float, int]:
    """The most answers a second, and how many workers it takes, tried for some seconds each."""
    best = (0.0, 0)
    for number in workers:
        started = time.perf_counter()
        rate = len(closed_loop(ask, number, seconds)) / (time.perf_counter() - started)
        if rate < best[0] * GAIN:
            break
        best = (rate, number)
    return best


def open_loop(ask: Callable[[], object], rate: float, seconds: float, workers: int = 32) -> list[float]:
    """Requests come at even distances, whether or not those before them are answered.

    Args:
        ask: function. Sends a request and returns when it is answered.
        rate: float. Requests a second.
        seconds: float.
        workers: int. The most requests under way.

    Returns:
        The seconds from when each request was due to its answer: what one waits for another counts.
    """
    started, numbers, most = time.perf_counter(), count(), int(rate * seconds)

    def work(_: int) -> list[float]:
        found = []
        while (number := next(numbers)) < most:
            due = started + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            ask()
            found.append(time.perf_counter() - due)
        return found

    with ThreadPoolExecutor(workers) as pool:
        return [latency for found in pool.map(work, range(workers)) for latency in found]
