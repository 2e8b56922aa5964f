"""Structured attention with one mask over all tokens: what the other kernels are tested against."""

from __future__ import annotations

from typing import Any

from keras import ops

from trainer.ops.attention.attention_pattern import AttentionPattern, Prefix
from trainer.ops.attention.softmax import HIDDEN, softmax


def reference_attention(
    queries: Any, keys: Any, values: Any, pattern: AttentionPattern, mask: Any, prefix: Prefix, bias: Any
) -> Any:
    """See `structured_attention`. Holds the scores of all queries against all keys."""
    size, depth, dtype = ops.shape(keys)[2], queries.shape[-1], queries.dtype
    mask = ops.ones((ops.shape(keys)[0], size), "bool") if mask is None else mask
    key, query = ops.arange(size), ops.arange(size)[size - ops.shape(queries)[2] :, None]
    group_size = pattern.group_size or max(size, 1)
    first = query // group_size * group_size
    in_group = {
        "first": ops.logical_or(key == first, key == query),
        "before": ops.logical_and(key >= first, key <= query),
        "all": key // group_size == query // group_size,
    }[pattern.reads]
    readable = ops.concatenate([prefix.mask, mask], axis=1)[:, None, None, :]
    of_prefix = ops.ones((ops.shape(query)[0], ops.shape(prefix.mask)[1]), "bool")
    visible = ops.logical_and(ops.concatenate([of_prefix, in_group], axis=1), readable)
    queries, keys, values = (
        ops.cast(tensor, "float32")
        for tensor in (
            queries,
            ops.concatenate([prefix.keys, keys], axis=2),
            ops.concatenate([prefix.values, values], axis=2),
        )
    )
    scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2))) * depth**-0.5
    biased = ops.concatenate([ops.zeros_like(of_prefix), key == first], axis=1)
    scores = scores + ops.where(biased, ops.cast(bias, "float32")[:, None, None], 0.0)
    weights = softmax(ops.where(visible, scores, HIDDEN))
    weights = ops.where(mask[:, None, size - ops.shape(queries)[2] :, None], weights, 0.0)
    return pattern.select_queries(ops.cast(ops.matmul(weights, values), dtype))
