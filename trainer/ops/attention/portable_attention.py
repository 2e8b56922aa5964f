"""Structured attention in keras.ops: for any backend, XLA and exported models.

One matrix product gives the scores in the form that the softmax takes. Whatever has to be added to them is appended to
queries and keys as further columns: the scores within the group, which meet columns of the unit matrix, and a large
negative number where a key is padding. So the scores are written once and read once. A token that attends to the
prefix, its group's first token and itself has U + 2 of them.

Shapes: B requests, H heads, U prefix tokens, D = d/H; a list of M tokens of which the last Q attend, or N groups of G
tokens of which R attend.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from trainer.ops.attention.attention_pattern import AttentionPattern, Prefix
from trainer.ops.attention.softmax import HIDDEN, softmax


def portable_attention(
    queries: Any, keys: Any, values: Any, pattern: AttentionPattern, mask: Any, prefix: Prefix, bias: Any
) -> Any:
    """See `structured_attention`."""
    scaled = ops.cast(queries, "float32") * (queries.shape[-1] ** -0.5)  # [B, H, Q, D]
    if pattern.group_size is not None:
        return _group_attention(scaled, keys, values, pattern, mask, prefix, bias)
    mask = ops.ones((ops.shape(keys)[0], ops.shape(keys)[2]), "bool") if mask is None else mask  # [B, M]
    read = _list_attention(scaled, keys, values, pattern, mask, prefix)  # [B, H, Q, D]
    return _where_tokens_are(read, mask[:, None, ops.shape(mask)[1] - ops.shape(queries)[2] :, None])  # [B, H, Q, D]


def _list_attention(queries: Any, keys: Any, values: Any, pattern: AttentionPattern, mask: Any, prefix: Prefix) -> Any:
    """Attention [B, H, Q, D] of a list that is one group."""
    u, m, q = ops.shape(prefix.mask)[1], ops.shape(mask)[1], ops.shape(queries)[2]
    if prefix.keys.shape[2] != 0:
        keys = ops.concatenate([prefix.keys, keys], axis=2)  # [B, H, U + M, D]
        values = ops.concatenate([prefix.values, values], axis=2)  # [B, H, U + M, D]
        mask = ops.concatenate([prefix.mask, mask], axis=1)  # [B, U + M]
    keys = ops.concatenate(
        [ops.cast(keys, "float32"), _hidden(mask, ops.shape(keys)[1])], axis=-1
    )  # [B, H, U + M, D + 1]
    queries = ops.concatenate([queries, ops.ones_like(queries[..., :1])], axis=-1)  # [B, H, Q, D + 1]
    scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2)))  # [B, H, Q, U + M]
    if pattern.reads == "before":
        later = ops.arange(u + m)[None, :] > (ops.arange(q) + (u + m - q))[:, None]  # [Q, U + M]
        # Not a sum: XLA would fuse that with the product, and compute the product slowly.
        scores = ops.where(later, HIDDEN, scores)  # [B, H, Q, U + M]
    return ops.matmul(ops.cast(softmax(scores), values.dtype), values)  # [B, H, Q, D]


def _group_attention(
    queries: Any, keys: Any, values: Any, pattern: AttentionPattern, mask: Any, prefix: Prefix, bias: Any
) -> Any:
    """Attention [B, H, N R, D] of a list of groups, where each token has W scores within its group, 2 or G."""
    queries_per_group = pattern.queries_per_group
    size = queries_per_group + pattern.query_offset
    # Sizes are taken from the prefix where possible: TensorFlow then computes what follows from them once for all
    # blocks.
    (b, u), (_, h, m, d) = ops.shape(prefix.mask), ops.shape(keys)
    n = m // size
    key_groups, value_groups = (
        ops.reshape(tensor, (b, h, n, size, d)) for tensor in (keys, values)
    )  # [B, H, N, G, D] each
    queries = ops.reshape(pattern.select_queries(queries), (b, h, n, queries_per_group, d))  # [B, H, N, R, D]
    own = _own_scores(queries, ops.cast(key_groups, "float32"), pattern, bias)  # [B, H, N, R, W]
    if mask is not None:
        own = _without_padding(own, pattern, ops.reshape(mask, (b, 1, n, size)))  # [B, H, N, R, W]
    width, rows = own.shape[-1], (b, h, n * queries_per_group)
    queries = ops.concatenate([queries, own, ops.ones_like(queries[..., :1])], axis=-1)  # [B, H, N, R, D + W + 1]
    queries = ops.reshape(queries, (*rows, d + width + 1))  # [B, H, N R, D + W + 1]

    # The keys: U rows of the prefix, which ignore the own scores, and W rows that pick one own score each.
    nothing = ops.zeros((b, h, width, d))  # [B, H, W, D]
    prefix_columns = ops.concatenate(
        [ops.zeros((b, h, u, width)), _hidden(prefix.mask, h)], axis=-1
    )  # [B, H, U, W + 1]
    own_columns = ops.broadcast_to(ops.eye(width, width + 1), (b, h, width, width + 1))  # [B, H, W, W + 1]
    further = ops.concatenate([prefix_columns, own_columns], axis=2)  # [B, H, U + W, W + 1]
    keys = ops.concatenate([ops.cast(prefix.keys, "float32"), nothing], axis=2)  # [B, H, U + W, D]
    keys = ops.concatenate([keys, further], axis=-1)  # [B, H, U + W, D + W + 1]
    weights = softmax(ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2))))  # [B, H, N R, U + W]
    weights = ops.cast(weights, values.dtype)  # [B, H, N R, U + W]

    prefix_values = ops.concatenate([prefix.values, ops.cast(nothing, values.dtype)], axis=2)  # [B, H, U + W, D]
    read = ops.matmul(weights, prefix_values)  # [B, H, N R, D]
    own = ops.reshape(weights[..., u:], (b, h, n, queries_per_group, width))  # [B, H, N, R, W]
    if pattern.reads == "first":
        first, itself = value_groups[:, :, :, :1], value_groups[:, :, :, pattern.query_offset :]
        own_read = own[..., :1] * first + own[..., 1:] * itself  # [B, H, N, R, D]
    else:
        own_read = ops.matmul(own, value_groups)  # [B, H, N, R, D]
    read = read + ops.reshape(own_read, (*rows, d))  # [B, H, N R, D]
    return read if mask is None else _where_tokens_are(read, pattern.select_queries(mask[:, None, :, None]))


def _own_scores(queries: Any, keys: Any, pattern: AttentionPattern, bias: Any) -> Any:
    """The scores within groups [B, H, N, R, W]: against the first token and the token itself, or against all tokens."""
    place = ops.arange(pattern.query_offset, pattern.group_size)  # [R]
    if pattern.reads == "first":
        to_first = ops.sum(queries * keys[:, :, :, :1], axis=-1)  # [B, H, N, R]
        to_first = to_first + ops.cast(bias, "float32")[:, None, None]  # [B, H, N, R]
        to_itself = ops.sum(queries * keys[:, :, :, pattern.query_offset :], axis=-1)  # [B, H, N, R]
        if not pattern.query_offset:
            # The group's first token is the first token and itself: it counts once.
            to_itself = ops.where(place > 0, to_itself, HIDDEN)  # [B, H, N, R]
        return ops.stack([to_first, to_itself], axis=-1)  # [B, H, N, R, 2]
    scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 2, 4, 3)))  # [B, H, N, R, G]
    if pattern.reads == "before":
        not_later = ops.arange(pattern.group_size)[None, :] <= place[:, None]  # [R, G]
        scores = ops.where(not_later, scores, HIDDEN)  # [B, H, N, R, G]
    return scores


def _without_padding(scores: Any, pattern: AttentionPattern, mask: Any) -> Any:
    """The scores within groups [B, H, N, R, W], with those of masked tokens hidden; the mask is [B, 1, N, G]."""
    if pattern.reads == "first":
        # A token that is masked itself gets zeros at the end anyway.
        itself = ops.ones_like(mask[..., pattern.query_offset :])  # [B, 1, N, R]
        first = ops.broadcast_to(mask[..., :1], ops.shape(itself))  # [B, 1, N, R]
        mask = ops.stack([first, itself], axis=-1)  # [B, 1, N, R, 2]
    else:
        mask = mask[..., None, :]  # [B, 1, N, 1, G]
    return ops.where(mask, scores, HIDDEN)  # [B, H, N, R, W]


def _where_tokens_are(read: Any, mask: Any) -> Any:
    """Zeros [B, H, Q, D] where the mask [B, 1, Q, 1] is False."""
    return read * ops.cast(mask, read.dtype)  # [B, H, Q, D]


def _hidden(mask: Any, heads: Any) -> Any:
    """A column of keys [B, H, U, 1] that hides padding: a large negative number meets the queries' column of ones."""
    b, u = ops.shape(mask)
    return ops.broadcast_to(ops.where(mask, 0.0, HIDDEN)[:, None, :, None], (b, heads, u, 1))  # [B, H, U, 1]
