"""Losses over request batches with missing labels.

What stands at a place of weight 0 (the logit or label of a padded candidate, or of a missing label) changes neither a
loss nor its gradient, not even when it is NaN.
"""

from __future__ import annotations

from typing import Any

from keras import ops

_HIDDEN = -1e9  # a logit that leaves nothing in a softmax
_TINY = 1e-12  # under a sum of weights that may be 0


def masked_bce(logits: Any, labels: Any, weights: Any) -> Any:
    """Binary cross-entropy per task over the candidates whose label is there.

    Args:
        logits: Float [B, N, K].
        labels: Float [B, N, K], 0 or 1.
        weights: Float [B, N, K]. The weight of each label: 0 for padded candidates and missing labels, else mostly 1.

    Returns:
        Float [K]. The weighted mean over the labels that are there; 0 for a task without any.
    """
    logits, labels = zero_where_masked(logits, weights), zero_where_masked(labels, weights)
    # log(1 + e^x) of a negative, log(1 + e^-x) of a positive; exact at 0 too, where relu and abs have no slope
    losses = ops.softplus(logits * (1 - 2 * labels))
    total = ops.sum(losses * weights, axis=(0, 1))
    return total / ops.maximum(ops.sum(weights, axis=(0, 1)), _TINY)


def masked_infonce(logits: Any, labels: Any, weights: Any) -> Any:
    """List-wise InfoNCE per task: each positive against all candidates of its request whose label is there.

    A request counts if it holds a positive and a negative of the task. Its loss is the mean over its positives of
    -log softmax.

    What a weight w means: a positive counts w times in the mean over the positives. In the softmax of a positive, any
    other candidate, positive or negative, stands w times; the positive itself stands there whole, and w times if w is
    above 1. So a whole weight is as many equal candidates, a weight that goes to 0 leaves the candidate out, and the
    loss is never below 0: a positive has at most all of its softmax.

    Args:
        logits: Float [B, N, K], already over the temperature.
        labels: Float [B, N, K], 0 or 1.
        weights: Float [B, N, K]. The weight of each label: 0 for padded candidates and missing labels, else mostly 1.

    Returns:
        Float [K]. The mean over the requests that count, 0 or more; 0 for a task without any.
    """
    logits, labels = zero_where_masked(logits, weights), zero_where_masked(labels, weights)
    weighted = ops.where(weights > 0, logits + ops.log(ops.maximum(weights, _TINY)), _HIDDEN)
    all_candidates = ops.logsumexp(weighted, axis=1, keepdims=True)
    # the rest of a positive of weight below 1, which has to stand whole in its own softmax
    is_part = ops.logical_and(weights > 0, weights < 1)
    rest = logits + ops.log(ops.where(is_part, ops.maximum(1 - weights, _TINY), 1.0))
    with_rest = all_candidates + ops.softplus(rest - all_candidates)  # log(e^a + e^b), smooth at a = b
    made_whole = ops.maximum(with_rest - logits, 0.0)  # rounding alone leads below 0
    losses = ops.where(is_part, made_whole, ops.where(weights > 0, all_candidates - logits, 0.0))
    positives = ops.sum(labels * weights, axis=1)
    negatives = ops.sum((1 - labels) * weights, axis=1)
    counts = ops.cast(ops.logical_and(positives > 0, negatives > 0), logits.dtype)
    per_request = ops.sum(losses * labels * weights, axis=1) / ops.maximum(positives, _TINY)
    return ops.sum(per_request * counts, axis=0) / ops.maximum(ops.sum(counts, axis=0), 1.0)


def zero_where_masked(values: Any, weights: Any) -> Any:
    """The values, 0 where the weight is 0: multiplied by that 0 later on, NaN and infinity would stay NaN.

    Args:
        values: Float [B, N, K].
        weights: Float [B, N, K].

    Returns:
        Float [B, N, K]. The gradient of a value that is masked is 0.
    """
    return ops.where(weights > 0, values, 0.0)
