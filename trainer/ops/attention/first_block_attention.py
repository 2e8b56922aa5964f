"""The attention of OneRank's first block, in which all candidates have the same task tokens.

There, a task token's attention to the prefix and to itself is the same for all candidates. It is computed once, along
with the prefix, so that only N of N (1 + K) tokens have to attend to the prefix. What is left for a task token is its
own candidate's score against the log-sum-exp of all its other scores: a softmax over these two is a sigmoid of their
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from trainer.ops.attention.attention_pattern import AttentionPattern, Prefix
from trainer.ops.attention.softmax import HIDDEN, softmax
from trainer.ops.attention.structured_attention import structured_attention


def read_before_candidates(tasks: Sequence[Any], prefix: Prefix) -> Any:
    """The attention of task tokens to the prefix and to themselves, without their candidates.

    Args:
        tasks: sequence of Float [1, H, K, D]. The task tokens' queries, keys and values.
        prefix: Prefix. As for `structured_attention`.

    Returns:
        Float32 [B, H, K, 2 D + 1]: the scaled queries [.., D], the weighted means of the values [.., D], and the
        log-sum-exp of the scores [.., 1].
    """
    queries, keys, values = (ops.cast(tensor, "float32") for tensor in tasks)  # [1, H, K, D] each
    prefix_keys, prefix_values = (
        ops.cast(tensor, "float32") for tensor in (prefix.keys, prefix.values)
    )  # [B, H, U, D] each
    queries = queries * (queries.shape[-1] ** -0.5)  # [1, H, K, D]
    scores = ops.matmul(queries, ops.transpose(prefix_keys, (0, 1, 3, 2)))  # [B, H, K, U]
    scores = ops.where(ops.cast(prefix.mask, "bool")[:, None, None, :], scores, HIDDEN)  # [B, H, K, U]
    b, h, k, _ = ops.shape(scores)
    to_itself = ops.broadcast_to(ops.sum(queries * keys, axis=-1, keepdims=True), (b, h, k, 1))  # [B, H, K, 1]
    scores = ops.concatenate([scores, to_itself], axis=-1)  # [B, H, K, U + 1]
    weights = softmax(scores)  # [B, H, K, U + 1]
    read = ops.matmul(weights[..., :-1], prefix_values) + weights[..., -1:] * values  # [B, H, K, D]
    queries = ops.broadcast_to(queries, ops.shape(read))  # [B, H, K, D]
    log_sum = ops.logsumexp(scores, axis=-1, keepdims=True)  # [B, H, K, 1]
    return ops.concatenate([queries, read, log_sum], axis=-1)  # [B, H, K, 2 D + 1]


def first_block_attention(
    candidates: Sequence[Any], task_read: Any, prefix: Prefix, bias: Any, tasks_only: bool = False
) -> Any:
    """Attention under `AttentionPattern("first", 1 + K)` of groups whose task tokens are the same.

    Args:
        candidates: sequence of Float [B, H, N, D]. Queries, keys and values of the groups' first tokens.
        task_read: Float32 [B, H, K, 2 D + 1]. See `read_before_candidates`.
        prefix: Prefix. As for `structured_attention`.
        bias: Float [H]. Added to the scores of the own candidate.
        tasks_only: bool. Whether to return the task tokens alone. Defaults to False.

    Returns:
        Float [B, H, N (1 + K), D], or [B, H, N K, D] with `tasks_only`.
    """
    queries, keys, values = candidates  # [B, H, N, D] each
    b, h, n, d = ops.shape(values)
    task_read = ops.cast(task_read, "float32")  # [B, H, K, 2 D + 1]
    task_queries, other_read, other_sum = (
        task_read[..., :d],  # [B, H, K, D]
        task_read[..., d : 2 * d],  # [B, H, K, D]
        task_read[..., 2 * d :],  # [B, H, K, 1]
    )
    scores = ops.matmul(ops.cast(keys, "float32"), ops.transpose(task_queries, (0, 1, 3, 2)))  # [B, H, N, K]
    scores = scores + bias[:, None, None]  # [B, H, N, K]
    own_weight = ops.sigmoid(scores - ops.transpose(other_sum, (0, 1, 3, 2)))  # [B, H, N, K]
    own_weight = ops.expand_dims(own_weight, -1)  # [B, H, N, K, 1]
    other_read = ops.expand_dims(other_read, 2)  # [B, H, 1, K, D]
    own_values = ops.expand_dims(ops.cast(values, "float32"), 3)  # [B, H, N, 1, D]
    task_output = other_read + own_weight * (own_values - other_read)  # [B, H, N, K, D]
    task_output = ops.cast(task_output, values.dtype)  # [B, H, N, K, D]
    k = task_read.shape[2]
    if tasks_only:
        return ops.reshape(task_output, (b, h, n * k, d))  # [B, H, N K, D]
    candidate_output = structured_attention(
        queries, keys, values, AttentionPattern("first", 1), prefix=prefix, bias=bias
    )  # [B, H, N, D]
    groups = ops.concatenate([ops.expand_dims(candidate_output, 3), task_output], axis=3)  # [B, H, N, 1 + K, D]
    return ops.reshape(groups, (b, h, n * (1 + k), d))  # [B, H, N (1 + K), D]
