"""Structured attention in keras.ops: for any backend, XLA and exported models.

Scores come out of one matrix product as the softmax takes them. What is to be added to them rides along as further
columns of queries and keys: the scores within the group against columns of the unit matrix, and a large negative number
where a key is padding. So the scores are written once and read once, and there are U + 2 for a token of a group that
reads the context, its group's first token and itself.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from trainer.ops.softmax import HIDDEN, softmax
from trainer.ops.visibility import Context, Visibility


def portable_attention(
    queries: Any, keys: Any, values: Any, visibility: Visibility, mask: Any, context: Context, bias: Any
) -> Any:
    """See `structured_attention`."""
    scaled = ops.cast(queries, "float32") * (queries.shape[-1] ** -0.5)
    attend = _list_attention if visibility.group_size is None else _group_attention
    read = attend(scaled, keys, values, visibility, mask, context, bias)
    there = mask[:, ops.shape(mask)[1] - ops.shape(queries)[2] :]
    return read * ops.cast(there, read.dtype)[:, None, :, None]


def _list_attention(
    queries: Any, keys: Any, values: Any, visibility: Visibility, mask: Any, context: Context, bias: Any
) -> Any:
    """One group: scores [B, H, Q, U + M]."""
    u, m, q = ops.shape(context.mask)[1], ops.shape(mask)[1], ops.shape(queries)[2]
    if context.keys.shape[2] != 0:
        keys, values = ops.concatenate([context.keys, keys], axis=2), ops.concatenate([context.values, values], axis=2)
        mask = ops.concatenate([context.mask, mask], axis=1)
    keys = ops.concatenate([ops.cast(keys, "float32"), _hidden(mask, keys)], axis=-1)
    queries = ops.concatenate([queries, ops.ones_like(queries[..., :1])], axis=-1)
    scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2)))
    if visibility.reads == "before":
        later = ops.arange(u + m)[None, :] > (ops.arange(q) + (u + m - q))[:, None]
        scores = ops.where(later, HIDDEN, scores)  # a sum, XLA would fuse with the product, and compute this slowly
    return ops.matmul(ops.cast(softmax(scores), values.dtype), values)


def _group_attention(
    queries: Any, keys: Any, values: Any, visibility: Visibility, mask: Any, context: Context, bias: Any
) -> Any:
    """Many groups: scores [B, H, M, U + the tokens that one reads of its group]."""
    size = visibility.group_size
    b, h, m, d = ops.shape(keys)
    grouped = (b, h, m // size, size, d)
    key_groups, value_groups = ops.reshape(ops.cast(keys, "float32"), grouped), ops.reshape(values, grouped)
    own = _own_scores(
        ops.reshape(queries, grouped), key_groups, visibility, ops.reshape(mask, (b, m // size, size)), bias
    )
    width = own.shape[-1]
    queries = ops.concatenate([queries, ops.reshape(own, (b, h, m, width)), ops.ones_like(queries[..., :1])], axis=-1)

    u = ops.shape(context.keys)[2]
    of_context = [ops.cast(context.keys, "float32"), ops.zeros((b, h, u, width)), _hidden(context.mask, context.keys)]
    of_group = ops.concatenate([ops.zeros((width, d)), ops.eye(width), ops.zeros((width, 1))], axis=-1)
    of_group = ops.broadcast_to(of_group, (b, h, width, d + width + 1))
    keys = ops.concatenate([ops.concatenate(of_context, axis=-1), of_group], axis=2)
    weights = softmax(ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2))))
    weights = ops.cast(weights, values.dtype)

    context_values = ops.concatenate([context.values, ops.zeros((b, h, width, d), values.dtype)], axis=2)
    read = ops.matmul(weights, context_values)
    own = ops.reshape(weights[..., u:], (b, h, m // size, size, width))
    if visibility.reads == "first":
        of_own = own[..., :1] * value_groups[:, :, :, :1] + own[..., 1:] * value_groups
    else:
        of_own = ops.matmul(own, value_groups)
    return read + ops.reshape(of_own, (b, h, m, d))


def _own_scores(queries: Any, keys: Any, visibility: Visibility, mask: Any, bias: Any) -> Any:
    """The scores within groups [B, H, N, G, 2 or G], those of the group's first token in front."""
    place = ops.arange(visibility.group_size)
    if visibility.reads == "first":
        to_first = ops.sum(queries * keys[:, :, :, :1], axis=-1) + ops.cast(bias, "float32")[:, None, None]
        to_first = ops.where(mask[:, None, :, :1], to_first, HIDDEN)
        # the first token is itself: it counts once
        to_itself = ops.where(place > 0, ops.sum(queries * keys, axis=-1), HIDDEN)
        return ops.stack([to_first, to_itself], axis=-1)
    scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 2, 4, 3)))
    visible = mask[:, None, :, None, :]
    if visibility.reads == "before":
        visible = ops.logical_and(visible, place[None, :] <= place[:, None])
    return ops.where(visible, scores, HIDDEN)


def _hidden(mask: Any, keys: Any) -> Any:
    """The column of keys [B, H, U, 1] that hides those of padding from a query's column of ones."""
    column = ops.where(mask, 0.0, HIDDEN)[:, None, :, None]
    return ops.broadcast_to(column, (*ops.shape(keys)[:3], 1))
