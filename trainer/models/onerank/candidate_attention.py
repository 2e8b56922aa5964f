"""OneRank's candidate-aware contextualization: each task attends to all candidates of the request."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.layers.initializers import glorot_of_one
from trainer.ops.attention.softmax import HIDDEN, softmax


@keras.saving.register_keras_serializable(package="onerank")
class CandidateAttention(keras.layers.Layer):
    """Multi-head attention per task: one query over the task's states of all candidates, with weights of its own.

    This is what makes a score depend on the other candidates. Padded candidates are ignored. The result is a summary,
    possibly of a part of the candidates only; `SummaryMerge` merges the summaries of all parts into a vector per task.

    Args:
        heads: int. H, the attention heads; divides d. Defaults to 4.

    Call arguments:
        queries: Float [B, K, d].
        candidates: Float [B, N, K, d]. Keys and values.
        candidate_mask: Bool [B, N]. True where there is a candidate.

    Returns:
        A dict: `read` [B, 1, K, H, d/H], the weighted mean of the values per head, and `log_weight` [B, 1, K, H],
        float32, the log-sum-exp of its scores. Axis 1 counts the parts.

    Raises:
        ValueError: when `heads` is below 1 or does not divide d.

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
            raise ValueError(f"`heads` should be at least 1. Received: `heads={heads}`.")
        self.heads = heads

    def build(self, queries_shape: Any, candidates_shape: Any) -> None:
        """Creates the projections; each is one variable that holds the matrices of all tasks and heads."""
        k, d = queries_shape[-2:]
        if d % self.heads:
            raise ValueError(
                "`heads` should divide d, since each head takes an equal part of the width. "
                f"Received: `heads={self.heads}`, d = {d}."
            )

        def kernel(name: str) -> Any:
            uniform = glorot_of_one(d, d)
            return self.add_weight(shape=(k, self.heads, d, d // self.heads), initializer=uniform, name=name)

        self.query_kernel = kernel("query_kernel")
        self.key_kernel = kernel("key_kernel")
        self.value_kernel = kernel("value_kernel")
        self.built = True

    def call(self, queries: Any, candidates: Any, candidate_mask: Any) -> dict[str, Any]:
        """The summary per task and head."""
        # One matrix product per task and head: an einsum would transpose the kernels at every call.
        by_task = ops.expand_dims(ops.transpose(queries, (1, 0, 2)), 1)  # [K, 1, B, d]
        query = ops.matmul(by_task, self.query_kernel)  # [K, H, B, d/H]
        # The key projection is applied to the query, not to the candidates: this saves keys of [B, N, K, H, d/H].
        query = ops.matmul(query, ops.transpose(self.key_kernel, (0, 1, 3, 2)))  # [K, H, B, d]
        query = ops.transpose(query, (2, 0, 1, 3))  # [B, K, H, d]
        candidates = ops.transpose(candidates, (0, 2, 1, 3))  # [B, K, N, d]
        scores = ops.cast(ops.matmul(query, ops.transpose(candidates, (0, 1, 3, 2))), "float32")  # [B, K, H, N]
        scores = scores * (self.query_kernel.shape[-1] ** -0.5)  # [B, K, H, N]
        scores = ops.where(candidate_mask[:, None, None, :], scores, HIDDEN)  # [B, K, H, N]
        weights = ops.cast(softmax(scores), candidates.dtype)  # [B, K, H, N]
        mean = ops.transpose(ops.matmul(weights, candidates), (1, 2, 0, 3))  # [K, H, B, d]
        read = ops.transpose(ops.matmul(mean, self.value_kernel), (2, 0, 1, 3))  # [B, K, H, d/H]
        return {
            "read": ops.expand_dims(read, 1),  # [B, 1, K, H, d/H]
            "log_weight": ops.expand_dims(ops.logsumexp(scores, axis=-1), 1),  # [B, 1, K, H]
        }

    def compute_output_spec(self, queries: Any, candidates: Any, candidate_mask: Any) -> dict[str, Any]:
        """`read` [B, 1, K, H, d/H] and `log_weight` [B, 1, K, H]."""
        b, k, d = queries.shape
        heads = (b, 1, k, self.heads)
        return {
            "read": keras.KerasTensor((*heads, d // self.heads), self.compute_dtype),
            "log_weight": keras.KerasTensor(heads, "float32"),
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads}
