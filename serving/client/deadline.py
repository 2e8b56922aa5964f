"""The time that a request may take, all its calls and attempts together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from serving.client.errors import RankingUnavailable, TransientFailure

Answer = TypeVar("Answer")


class Deadline:
    """The end of a request's time, counted from now.

    Args:
        seconds: float.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left; a RankingUnavailable when there are none."""
        left = self._left()
        if left <= 0:
            raise RankingUnavailable(
                f"deadline: an answer within {self.seconds:g} s is expected. Received: none. Raise `deadline`."
            )
        return left

    def keep_trying(self, call: Callable[[float], Answer]) -> Answer:
        """Calls until it doesn't fail for a moment only, or until there is no time for another attempt.

        Every call of a model is a pure function of its request, so a repeated one can do no harm. Attempts follow after
        random pauses of up to 50 ms, then 100 ms and so on up to 1 s.

        Args:
            call: function. Takes the seconds that are left.

        Returns:
            What `call` returned.

        Raises:
            TransientFailure: the last one.
        """

        def no_time(state: RetryCallState) -> bool:
            return state.upcoming_sleep >= self._left()

        return Retrying(
            retry=retry_if_exception_type(TransientFailure),
            wait=wait_random_exponential(multiplier=0.05, max=1),
            stop=no_time,
            reraise=True,
        )(lambda: call(self.remaining()))

    def _left(self) -> float:
        return self._end - time.monotonic()
