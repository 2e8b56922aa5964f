"""The attention of OneRank's first block, in which all candidates have the same task tokens.

What a task token reads there of the context and of itself is the same for all candidates: it is computed once, with the
context, and of N (1 + K) tokens that read the context N are left. The own candidate's score then stands against the
logarithm of the sum of all other scores' exponentials; a softmax over these two is a sigmoid of their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from trainer.ops.attention.softmax import HIDDEN, softmax
from trainer.ops.attention.structured_attention import structured_attention
from trainer.ops.attention.visibility import Context, Visibility


def read_before_candidates(tasks: Sequence[Any], context: Context) -> Any:
    """What task tokens read of the context and of themselves.

    Args:
        tasks: sequence of Float [1, H, K, D]. The task tokens' queries, keys and values.
        context: Context. As for `structured_attention`.

    Returns:
        Float32 [B, H, K, 2 D + 1]: the queries, scaled; the mean of values; and the logarithm of the sum of the scores'
        exponentials.
    """
    queries, keys, values = (ops.cast(tensor, "float32") for tensor in tasks)
    context_keys, context_values = (ops.cast(tensor, "float32") for tensor in (context.keys, context.values))
    queries = queries * (queries.shape[-1] ** -0.5)
    scores = ops.matmul(queries, ops.transpose(context_keys, (0, 1, 3, 2)))
    scores = ops.where(ops.cast(context.mask, "bool")[:, None, None, :], scores, HIDDEN)
    b, h, k, _ = ops.shape(scores)
    to_itself = ops.broadcast_to(ops.sum(queries * keys, axis=-1, keepdims=True), (b, h, k, 1))
    scores = ops.concatenate([scores, to_itself], axis=-1)
    weights = softmax(scores)
    read = ops.matmul(weights[..., :-1], context_values) + weights[..., -1:] * values
    queries = ops.broadcast_to(queries, ops.shape(read))
    return ops.concatenate([queries, read, ops.logsumexp(scores, axis=-1, keepdims=True)], axis=-1)


def first_block_attention(
    candidates: Sequence[Any], task_read: Any, context: Context, bias: Any, tasks_only: bool = False
) -> Any:
    """Attention under `Visibility("first", 1 + K)` of groups whose task tokens are the same.

    Args:
        candidates: sequence of Float [B, H, N, D]. Queries, keys and values of the groups' first tokens.
        task_read: Float32 [B, H, K, 2 D + 1]. See `read_before_candidates`.
        context: Context. As for `structured_attention`.
        bias: Float [H]. Added to the scores of the own candidate.
        tasks_only: bool. Whether what the candidates' tokens read is left out. Defaults to False.

    Returns:
        Float [B, H, N (1 + K), D], or [B, H, N K, D] of the task tokens.
    """
    queries, keys, values = candidates
    b, h, n, d = ops.shape(values)
    task_read = ops.cast(task_read, "float32")
    of_tasks, read, others = task_read[..., :d], task_read[..., d : 2 * d], task_read[..., 2 * d :]
    scores = ops.matmul(ops.cast(keys, "float32"), ops.transpose(of_tasks, (0, 1, 3, 2))) + bias[:, None, None]
    own = ops.expand_dims(ops.sigmoid(scores - ops.transpose(others, (0, 1, 3, 2))), -1)  # [B, H, N, K, 1]
    read = ops.expand_dims(read, 2)
    of_tasks = read + own * (ops.expand_dims(ops.cast(values, "float32"), 3) - read)
    of_tasks = ops.cast(of_tasks, values.dtype)
    k = task_read.shape[2]
    if tasks_only:
        return ops.reshape(of_tasks, (b, h, n * k, d))
    of_candidates = structured_attention(queries, keys, values, Visibility("first", 1), context=context, bias=bias)
    groups = ops.concatenate([ops.expand_dims(of_candidates, 3), of_tasks], axis=3)
    return ops.reshape(groups, (b, h, n * (1 + k), d))
