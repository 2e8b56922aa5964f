"""Attention of a user's context and of candidate groups, without a tensor of all tokens by all tokens.

Who may read whom (a group is a candidate's token, then its task tokens):

| query | context | own candidate token | itself | all else |
|---|---|---|---|---|
| context token | itself and what is before | no | yes | no |
| candidate token | all | itself | yes | no |
| task token | all | yes | yes | no |

A context token is scored against the context; a token of a group against the context, its candidate token and itself:
U + 2 scores under one softmax. In a mask over all tokens that would be U + N (1 + K) scores, nearly all of them hidden.

Softmax is computed in float32, whatever the dtype of the tensors.
"""

from __future__ import annotations

from typing import Any

from keras import ops

HIDDEN = -1e9  # a score that leaves nothing after the softmax, and is finite where all scores are hidden


def context_attention(queries: Any, keys: Any, values: Any, mask: Any) -> Any:
    """Causal attention within the context.

    Args:
        queries: Float [B, H, U, d/H].
        keys: Float [B, H, U, d/H].
        values: Float [B, H, U, d/H].
        mask: Bool [B, U]. True where a token is.

    Returns:
        Float [B, H, U, d/H]. What padded tokens get means nothing.
    """
    scores = _scaled(ops.einsum("bhqd,bhkd->bhqk", queries, keys), queries)
    place = ops.arange(ops.shape(keys)[2])
    visible = ops.logical_and(place[None, :] <= place[:, None], mask[:, None, None, :])
    weights = softmax(ops.where(visible, scores, HIDDEN))
    return ops.einsum("bhqk,bhkd->bhqd", ops.cast(weights, values.dtype), values)


def group_attention(
    queries: Any,
    keys: Any,
    values: Any,
    context_keys: Any,
    context_values: Any,
    context_mask: Any,
    candidate_bias: Any,
) -> Any:
    """Attention of candidate groups: to the context, to the group's first token, and to oneself.

    Args:
        queries: Float [B, H, N, G, d/H]. G tokens a group, the candidate's first.
        keys: Float [B, H, N, G, d/H].
        values: Float [B, H, N, G, d/H].
        context_keys: Float [B, H, U, d/H]; U may be 0.
        context_values: Float [B, H, U, d/H].
        context_mask: Bool [B, U]. True where a token is.
        candidate_bias: Float [H]. Added to the scores of the group's first token.

    Returns:
        Float [B, H, N, G, d/H].
    """
    to_context = _scaled(ops.einsum("bhngd,bhud->bhngu", queries, context_keys), queries)
    to_context = ops.where(context_mask[:, None, None, None, :], to_context, HIDDEN)
    to_candidate = _scaled(ops.sum(queries * keys[:, :, :, :1], axis=-1, keepdims=True), queries)
    to_candidate = to_candidate + ops.cast(candidate_bias, "float32")[:, None, None, None]
    to_itself = _scaled(ops.sum(queries * keys, axis=-1, keepdims=True), queries)
    # the candidate's token is itself: it counts once
    is_task = ops.arange(queries.shape[3])[:, None] > 0
    to_itself = ops.where(is_task, to_itself, HIDDEN)
    weights = softmax(ops.concatenate([to_context, to_candidate, to_itself], axis=-1))
    weights = ops.cast(weights, values.dtype)
    of_context = ops.einsum("bhngu,bhud->bhngd", weights[..., :-2], context_values)
    return of_context + weights[..., -2:-1] * values[:, :, :, :1] + weights[..., -1:] * values


def softmax(scores: Any) -> Any:
    """Softmax over the last axis, and no warning from Keras where that is a single candidate, token or task."""
    # not ones_like: variables without any gradient would make optimizers warn
    return 1 + 0 * scores if scores.shape[-1] == 1 else ops.softmax(scores, axis=-1)


def _scaled(scores: Any, queries: Any) -> Any:
    return ops.cast(scores, "float32") * (queries.shape[-1] ** -0.5)
