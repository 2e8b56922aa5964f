"""Softmax of scores of which some are hidden."""

from __future__ import annotations

from typing import Any

from keras import ops

HIDDEN = -1e9  # a score that leaves nothing after the softmax, and is finite where all scores are hidden


def softmax(scores: Any) -> Any:
    """Softmax over the last axis, and no warning from Keras where that is a single candidate, token or task."""
    # not ones_like: variables without any gradient would make optimizers warn
    return 1 + 0 * scores if scores.shape[-1] == 1 else ops.softmax(scores, axis=-1)
