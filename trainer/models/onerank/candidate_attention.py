"""OneRank's candidate-aware contextualization: each task looks over all candidates of the request."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.ops.attention.softmax import HIDDEN, softmax


@keras.saving.register_keras_serializable(package="onerank")
class CandidateAttention(keras.layers.Layer):
    """Multi-head attention of one query a task over that task's states of candidates; all weights are the task's.

    It is what makes a score depend on what else is on offer. Padded candidates have no part in it. What comes out is a
    summary that may be of a part of the candidates alone; `SummaryMerge` makes one vector a task of all parts.

    Args:
        heads: int. H, the attention heads; divides d. Defaults to 4.

    Call arguments:
        queries: Float [B, K, d].
        candidates: Float [B, N, K, d]. Keys and values.
        candidate_mask: Bool [B, N]. True where a candidate is.

    Returns:
        A dict: `read` [B, 1, K, H, d/H], the mean of values that each head reads, and `log_weight` [B, 1, K, H],
        float32, the logarithm of the sum of its scores' exponentials. Axis 1 counts the parts.

    Example:
    ```python
    CandidateAttention(2)(np.ones((2, 3, 8)), np.ones((2, 5, 3, 8)), np.ones((2, 5), bool))["read"]  # [2, 1, 3, 2, 4]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), candidate-aware contextualization. Ours: no biases.
    """

    def __init__(self, heads: int = 4, **kwargs: Any):
        super().__init__(**kwargs)
        if heads < 1:
            raise ValueError(f"`heads` should be at least 1. Received: `heads={heads}`. Use 4.")
        self.heads = heads

    def build(self, queries_shape: Any, candidates_shape: Any) -> None:
        """Creates the projections of all tasks, one variable each."""
        k, d = queries_shape[-2:]
        if d % self.heads:
            raise ValueError(f"`heads` should divide d. Received: `heads={self.heads}`, d = {d}. Use 4 heads and d 64.")
        limit = (6.0 / (2 * d)) ** 0.5  # the glorot limits of one task's matrix, not of the stack

        def kernel(name: str) -> Any:
            uniform = keras.initializers.RandomUniform(-limit, limit)
            return self.add_weight(shape=(k, self.heads, d, d // self.heads), initializer=uniform, name=name)

        self.query_kernel = kernel("query_kernel")
        self.key_kernel = kernel("key_kernel")
        self.value_kernel = kernel("value_kernel")
        self.built = True

    def call(self, queries: Any, candidates: Any, candidate_mask: Any) -> dict[str, Any]:
        """What each task reads."""
        # Products of a batch a task and head: in an einsum, the kernels would be transposed at every call.
        by_task = ops.expand_dims(ops.transpose(queries, (1, 0, 2)), 1)  # [K, 1, B, d]
        query = ops.matmul(by_task, self.query_kernel)
        # The query meets the keys in the candidates' own space: [B, K, H, d] instead of keys [B, N, K, H, d/H].
        query = ops.matmul(query, ops.transpose(self.key_kernel, (0, 1, 3, 2)))  # [K, H, B, d]
        query = ops.transpose(query, (2, 0, 1, 3))
        candidates = ops.transpose(candidates, (0, 2, 1, 3))  # [B, K, N, d]
        scores = ops.cast(ops.matmul(query, ops.transpose(candidates, (0, 1, 3, 2))), "float32")
        scores = scores * (self.query_kernel.shape[-1] ** -0.5)
        scores = ops.where(candidate_mask[:, None, None, :], scores, HIDDEN)
        weights = ops.cast(softmax(scores), candidates.dtype)
        mean = ops.transpose(ops.matmul(weights, candidates), (1, 2, 0, 3))  # [K, H, B, d]
        read = ops.transpose(ops.matmul(mean, self.value_kernel), (2, 0, 1, 3))  # [B, K, H, d/H]
        return {
            "read": ops.expand_dims(read, 1),
            "log_weight": ops.expand_dims(ops.logsumexp(scores, axis=-1), 1),
        }

    def compute_output_spec(self, queries: Any, candidates: Any, candidate_mask: Any) -> dict[str, Any]:
        """[B, 1, K, H, d/H] and [B, 1, K, H]."""
        b, k, d = queries.shape
        heads = (b, 1, k, self.heads)
        return {
            "read": keras.KerasTensor((*heads, d // self.heads), self.compute_dtype),
            "log_weight": keras.KerasTensor(heads, "float32"),
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads}
