"""The answer to a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Ranking:
    """A request's scores, in the order in which its candidates were given.

    Attributes:
        tasks: dict. Probabilities float32 [N] by task.
        score: float32 [N]. The fused score.
        order: int64 [N]. The candidates' positions, best score first; ties stay in the order given.
        version: int. The version of the model that computed all of it.
        user_state_cached: bool. Whether the user state came from the cache.
    """

    tasks: Mapping[str, np.ndarray]
    score: np.ndarray
    order: np.ndarray
    version: int
    user_state_cached: bool
