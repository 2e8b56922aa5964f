"""Clients that compare each answer with the scores of the version that it says it is from."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serving.load_versions import LoadVersions
from serving.client import Ranker
from serving.client.errors import RankingError
from serving.tools.example_request import client_request

TOLERANCE = 1e-5
DEADLINE = 60.0  # seconds, which a restart of the server fits into
SCHEMES = ("grpc", "http")


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        at: float. When it was answered, in seconds of `time.perf_counter`.
        seconds: float. How long it took.
        version: int. That answered; 0 if it failed.
        fault: str. What is wrong with it, "" if nothing is.
    """

    at: float
    seconds: float
    version: int
    fault: str = ""


class LoadClients:
    """Asks, and compares what is answered.

    Args:
        versions: LoadVersions.
        requests: list of dict.
        addresses: dict. The server's, by protocol.
        model: str. Its name there.

    Attributes:
        asked: int. Requests so far.
        totals: Counter. Of the answers that were taken: `answers`, and of these `failed` and `wrong`.
    """

    def __init__(
        self, versions: LoadVersions, requests: Sequence[dict[str, Any]], addresses: dict[str, str], model: str
    ):
        self._versions = versions
        self._requests = [client_request(versions.spec, request) for request in requests]
        self._rankers = [Ranker(addresses[scheme], model, deadline=DEADLINE, refresh=1.0) for scheme in SCHEMES]
        self._lock = threading.Lock()
        self._answers: list[Answer] = []
        self.asked = 0
        self.totals: Counter[str] = Counter()

    def ask(self) -> None:
        """Sends the next request: protocols take turns, every other pair of them keeps user states."""
        with self._lock:
            number = self.asked
            self.asked += 1
        ranker = self._rankers[number % 2]
        request = (number // 4) % len(self._requests)
        keep = {"user_key": str(request), "history_version": 1} if number // 2 % 2 else {}
        started = time.perf_counter()
        try:
            ranking = ranker.rank(**self._requests[request], **keep)
            scores = np.stack([ranking.tasks[task] for task in sorted(ranking.tasks)])
            known = self._versions.scores(ranking.version, request)
            right = scores.shape == known.shape and np.abs(scores - known).max() < TOLERANCE
            version, fault = ranking.version, "" if right else "wrong"
        except RankingError as error:
            version, fault = 0, f"{type(error).__name__}: {error}"
        at = time.perf_counter()
        with self._lock:
            self._answers.append(Answer(at, at - started, version, fault))

    def take(self) -> list[Answer]:
        """The answers since the last time."""
        with self._lock:
            found, self._answers = self._answers, []
        self.totals.update(answers=len(found), **faults(found))
        return found

    @contextmanager
    def asking(self, workers: int) -> Iterator[None]:
        """Inside, workers ask without a pause."""
        enough = threading.Event()

        def work() -> None:
            while not enough.is_set():
                self.ask()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            enough.set()
            for thread in threads:
                thread.join()

    def close(self) -> None:
        for ranker in self._rankers:
            ranker.close()


def faults(answers: Sequence[Answer]) -> dict[str, int]:
    """How many answers are failures, and how many wrong."""
    wrong = sum(answer.fault == "wrong" for answer in answers)
    return {"failed": sum(bool(answer.fault) for answer in answers) - wrong, "wrong": wrong}
