"""Losses over request batches with missing labels."""

from __future__ import annotations

from typing import Any

from keras import ops

_HIDDEN = -1e9  # a logit that leaves nothing in a softmax
_TINY = 1e-12  # under a sum of weights that may be 0


def masked_bce(logits: Any, labels: Any, mask: Any) -> Any:
    """Binary cross-entropy per task over the candidates whose label is there.

    Args:
        logits: Float [B, N, K].
        labels: Float [B, N, K], 0 or 1.
        mask: Float [B, N, K]. The weight of each label: 0 for padded candidates and missing labels, else mostly 1.

    Returns:
        Float [K]. The weighted mean over the labels that are there; 0 for a task without any.
    """
    # log(1 + e^x) of a negative, log(1 + e^-x) of a positive; exact at 0 too, where relu and abs have no slope
    losses = ops.softplus(logits * (1 - 2 * labels))
    total = ops.sum(losses * mask, axis=(0, 1))
    return total / ops.maximum(ops.sum(mask, axis=(0, 1)), _TINY)


def masked_infonce(logits: Any, labels: Any, mask: Any) -> Any:
    """List-wise InfoNCE per task: each positive against all candidates of its request whose label is there.

    A request counts if it holds a positive and a negative of the task. Its loss is the mean over its positives of
    -log softmax. A candidate of weight w is w candidates, among the positives and in the softmax.

    Args:
        logits: Float [B, N, K], already over the temperature.
        labels: Float [B, N, K], 0 or 1.
        mask: Float [B, N, K]. The weight of each label: 0 for padded candidates and missing labels, else mostly 1.

    Returns:
        Float [K]. The mean over the requests that count; 0 for a task without any.
    """
    weighted = ops.where(mask > 0, logits + ops.log(ops.maximum(mask, _TINY)), _HIDDEN)
    losses = ops.where(mask > 0, ops.logsumexp(weighted, axis=1, keepdims=True) - logits, 0.0)
    positives = ops.sum(labels * mask, axis=1)
    negatives = ops.sum((1 - labels) * mask, axis=1)
    counts = ops.cast(ops.logical_and(positives > 0, negatives > 0), logits.dtype)
    of_request = ops.sum(losses * labels * mask, axis=1) / ops.maximum(positives, _TINY)
    return ops.sum(of_request * counts, axis=0) / ops.maximum(ops.sum(counts, axis=0), 1.0)
