"""Losses over request batches with missing labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops


def masked_bce(logits: Any, labels: Any, mask: Any) -> Any:
    """Binary cross-entropy per task over the candidates whose label is there.

    Args:
        logits: Float [B, N, K].
        labels: Float [B, N, K], 0 or 1.
        mask: Float [B, N, K]. 0 for padded candidates and missing labels.

    Returns:
        Float [K]. The mean over the labels that are there; 0 for a task without any.
    """
    # log(1 + e^x) of a negative, log(1 + e^-x) of a positive; exact at 0 too, where relu and abs have no slope
    losses = ops.softplus(logits * (1 - 2 * labels))
    total = ops.sum(losses * mask, axis=(0, 1))
    return total / ops.maximum(ops.sum(mask, axis=(0, 1)), 1.0)


def multi_task_loss(logits: Any, labels: Any, mask: Any, weights: Sequence[float]) -> tuple[Any, Any]:
    """The weighted sum of the tasks' losses.

    Args:
        logits: Float [B, N, K].
        labels: Float [B, N, K].
        mask: Float [B, N, K].
        weights: sequence of K floats.

    Returns:
        The loss (a scalar) and the unweighted losses [K].
    """
    losses = masked_bce(logits, labels, mask)
    return ops.sum(losses * ops.convert_to_tensor(list(weights), losses.dtype)), losses
