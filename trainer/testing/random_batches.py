"""Model inputs of all kinds, and random batches of them: models are tested without any data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from transform.features.model_inputs import Column, EventSequence, ModelInputs, Task

EXAMPLE_INPUTS = ModelInputs(
    columns=(
        Column("user", "age", "id", "age.bucket", 3),
        Column("user", "income", "dense", None, 1),
        Column("context", "hour", "dense", None, 1),
        Column("context", "device", "id", "device", 2),
        Column("candidate", "item", "id", "item", 4),
        Column("candidate", "price", "dense", None, 1),
        Column("candidate", "tags", "ids", "tag", 2),
        Column("liked", "item", "id", "item", 4),
        Column("seen", "item", "id", "item", 4),
        Column("seen", "buy", "id", "feedback.buy", 2),
    ),
    rows={"age.bucket": 6, "device": 5, "item": 12, "tag": 7, "feedback.buy": 3},
    sequences=(EventSequence("liked", "anchor", 6), EventSequence("seen", "history", 9)),
    tasks=(Task("click"), Task("buy", 2.0, "click"), Task("share")),
)
"""Inputs with every kind of column, a history, an anchor, and three tasks of which one depends on another."""


def random_batch(
    inputs: ModelInputs, candidates: Sequence[int], events: Sequence[int], widest: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """A batch of random values, its padding behind them.

    Args:
        inputs: ModelInputs.
        candidates: sequence of int. The number of candidates of each request.
        events: sequence of int. The number of events of each request, the same in every sequence.
        widest: int, optional. N. Defaults to the longest list of candidates.
        seed: int. Defaults to 0.

    Returns:
        What `transform.features.dataset.to_batch` makes of data, as numpy arrays.
    """
    random = np.random.default_rng(seed)
    candidate_mask = _mask(candidates, widest)  # [B, N]
    event_mask = _mask(events)  # [B, U]

    def group(name: str, mask: np.ndarray) -> dict[str, np.ndarray]:
        return {column.name: _values(random, inputs, column, mask) for column in inputs.group(name)}

    requests = np.ones(len(candidates), bool)
    return {
        "user": group("user", requests),
        "context": group("context", requests),
        "sequences": {name: {**group(name, event_mask), "mask": event_mask} for name in inputs.sequence_names},
        "candidates": {**group("candidate", candidate_mask), "mask": candidate_mask},
    }


def _mask(lengths: Sequence[int], widest: int | None = None) -> np.ndarray:
    return np.arange(max(lengths) if widest is None else widest) < np.array(lengths)[:, None]


def _values(random: np.random.Generator, inputs: ModelInputs, column: Column, mask: np.ndarray) -> np.ndarray:
    if column.kind == "dense":
        return (random.normal(size=mask.shape) * mask).astype("float32")
    rows = inputs.rows[str(column.table)]
    if column.kind == "id":
        return random.integers(1, rows, mask.shape) * mask
    return random.integers(0, rows, (*mask.shape, 3)) * mask[..., None]
