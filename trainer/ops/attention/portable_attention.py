"""Structured attention in keras.ops: for any backend, XLA and exported models.

Scores come out of one matrix product as the softmax takes them. What is to be added to them rides along as further
columns of queries and keys: the scores within the group against columns of the unit matrix, and a large negative number
where a key is padding. So the scores are written once and read once, and there are U + 2 for a token of a group that
reads the context, its group's first token and itself.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from trainer.ops.attention.softmax import HIDDEN, softmax
from trainer.ops.attention.visibility import Context, Visibility


def portable_attention(
    queries: Any, keys: Any, values: Any, visibility: Visibility, mask: Any, context: Context, bias: Any
) -> Any:
    """See `structured_attention`."""
    scaled = ops.cast(queries, "float32") * (queries.shape[-1] ** -0.5)
    if visibility.group_size is not None:
        return _group_attention(scaled, keys, values, visibility, mask, context, bias)
    mask = ops.ones((ops.shape(keys)[0], ops.shape(keys)[2]), "bool") if mask is None else mask
    read = _list_attention(scaled, keys, values, visibility, mask, context)
    return _where_tokens_are(read, mask[:, None, ops.shape(mask)[1] - ops.shape(queries)[2] :, None])


def _list_attention(queries: Any, keys: Any, values: Any, visibility: Visibility, mask: Any, context: Context) -> Any:
    """One group: scores [B, H, Q, U + M]."""
    u, m, q = ops.shape(context.mask)[1], ops.shape(mask)[1], ops.shape(queries)[2]
    if context.keys.shape[2] != 0:
        keys, values = ops.concatenate([context.keys, keys], axis=2), ops.concatenate([context.values, values], axis=2)
        mask = ops.concatenate([context.mask, mask], axis=1)
    keys = ops.concatenate([ops.cast(keys, "float32"), _hidden(mask, ops.shape(keys)[1])], axis=-1)
    queries = ops.concatenate([queries, ops.ones_like(queries[..., :1])], axis=-1)
    scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2)))
    if visibility.reads == "before":
        later = ops.arange(u + m)[None, :] > (ops.arange(q) + (u + m - q))[:, None]
        scores = ops.where(later, HIDDEN, scores)  # a sum, XLA would fuse with the product, and compute this slowly
    return ops.matmul(ops.cast(softmax(scores), values.dtype), values)


def _group_attention(
    queries: Any, keys: Any, values: Any, visibility: Visibility, mask: Any, context: Context, bias: Any
) -> Any:
    """Many groups: scores [B, H, Q, U + the tokens that one reads of its group]."""
    readers = visibility.readers
    size = readers + visibility.first_reader
    # The context's sizes, where they are the same: what follows from these, TensorFlow computes once for all blocks.
    (b, u), (_, h, m, d) = ops.shape(context.mask), ops.shape(keys)
    n = m // size
    key_groups, value_groups = (ops.reshape(tensor, (b, h, n, size, d)) for tensor in (keys, values))
    queries = ops.reshape(visibility.of_readers(queries), (b, h, n, readers, d))
    own = _own_scores(queries, ops.cast(key_groups, "float32"), visibility, bias)
    if mask is not None:
        own = _without_padding(own, visibility, ops.reshape(mask, (b, 1, n, size)))
    width, rows = own.shape[-1], (b, h, n * readers)
    queries = ops.concatenate([queries, own, ops.ones_like(queries[..., :1])], axis=-1)
    queries = ops.reshape(queries, (*rows, d + width + 1))

    nothing = ops.zeros((b, h, width, d))
    of_context = ops.concatenate([ops.zeros((b, h, u, width)), _hidden(context.mask, h)], axis=-1)
    of_group = ops.broadcast_to(ops.eye(width, width + 1), (b, h, width, width + 1))
    further = ops.concatenate([of_context, of_group], axis=2)
    keys = ops.concatenate([ops.cast(context.keys, "float32"), nothing], axis=2)
    keys = ops.concatenate([keys, further], axis=-1)
    weights = softmax(ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2))))
    weights = ops.cast(weights, values.dtype)

    read = ops.matmul(weights, ops.concatenate([context.values, ops.cast(nothing, values.dtype)], axis=2))
    own = ops.reshape(weights[..., u:], (b, h, n, readers, width))
    if visibility.reads == "first":
        of_own = (
            own[..., :1] * value_groups[:, :, :, :1] + own[..., 1:] * value_groups[:, :, :, visibility.first_reader :]
        )
    else:
        of_own = ops.matmul(own, value_groups)
    read = read + ops.reshape(of_own, (*rows, d))
    return read if mask is None else _where_tokens_are(read, visibility.of_readers(mask[:, None, :, None]))


def _own_scores(queries: Any, keys: Any, visibility: Visibility, bias: Any) -> Any:
    """The scores within groups [B, H, N, readers, 2 or G], those of the group's first token in front."""
    place = ops.arange(visibility.first_reader, visibility.group_size)
    if visibility.reads == "first":
        to_first = ops.sum(queries * keys[:, :, :, :1], axis=-1) + ops.cast(bias, "float32")[:, None, None]
        to_itself = ops.sum(queries * keys[:, :, :, visibility.first_reader :], axis=-1)
        if not visibility.first_reader:
            to_itself = ops.where(place > 0, to_itself, HIDDEN)  # the first token is itself: it counts once
        return ops.stack([to_first, to_itself], axis=-1)
    scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 2, 4, 3)))
    if visibility.reads == "before":
        scores = ops.where(ops.arange(visibility.group_size)[None, :] <= place[:, None], scores, HIDDEN)
    return scores


def _without_padding(scores: Any, visibility: Visibility, mask: Any) -> Any:
    """The scores within groups, those of masked tokens hidden; the mask is [B, 1, N, G]."""
    if visibility.reads == "first":
        itself = ops.ones_like(mask[..., visibility.first_reader :])  # masked itself, a token gets zeros anyway
        mask = ops.stack([ops.broadcast_to(mask[..., :1], ops.shape(itself)), itself], axis=-1)
    else:
        mask = mask[..., None, :]
    return ops.where(mask, scores, HIDDEN)


def _where_tokens_are(read: Any, mask: Any) -> Any:
    return read * ops.cast(mask, read.dtype)


def _hidden(mask: Any, heads: Any) -> Any:
    """The column of keys [B, H, U, 1] that hides those of padding from a query's column of ones."""
    b, u = ops.shape(mask)
    return ops.broadcast_to(ops.where(mask, 0.0, HIDDEN)[:, None, :, None], (b, heads, u, 1))
