"""OneRank's candidate-aware contextualization: each task looks over all candidates of the request."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.ops.softmax import HIDDEN, softmax


@keras.saving.register_keras_serializable(package="onerank")
class CandidateAttention(keras.layers.Layer):
    """Multi-head attention of one query a task over that task's states of all candidates; all weights are the task's.

    It is what makes a score depend on what else is on offer. Padded candidates have no part in it.

    Args:
        heads: int. H, the attention heads; divides d. Defaults to 4.

    Call arguments:
        queries: Float [B, K, d].
        candidates: Float [B, N, K, d]. Keys and values.
        candidate_mask: Bool [B, N]. True where a candidate is.

    Returns:
        Float [B, K, d].

    Example:
    ```python
    CandidateAttention(heads=2)(np.ones((2, 3, 8)), np.ones((2, 5, 3, 8)), np.ones((2, 5), bool))  # [2, 3, 8]
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
        width = d // self.heads
        limit = (6.0 / (2 * d)) ** 0.5  # the glorot limits of one task's matrix, not of the stack

        def kernel(name: str, shape: tuple[int, ...]) -> Any:
            uniform = keras.initializers.RandomUniform(-limit, limit)
            return self.add_weight(shape=shape, initializer=uniform, name=name)

        self.query_kernel = kernel("query_kernel", (k, d, self.heads, width))
        self.key_kernel = kernel("key_kernel", (k, d, self.heads, width))
        self.value_kernel = kernel("value_kernel", (k, d, self.heads, width))
        self.merge_kernel = kernel("merge_kernel", (k, self.heads, width, d))
        self.built = True

    def call(self, queries: Any, candidates: Any, candidate_mask: Any) -> Any:
        """What each task reads."""
        query = ops.einsum("bkd,kdhe->bkhe", queries, self.query_kernel)
        # The query meets the keys in the candidates' own space: [B, K, H, d] instead of keys [B, N, K, H, d/H].
        query = ops.einsum("bkhe,kdhe->bkhd", query, self.key_kernel)
        scores = ops.cast(ops.einsum("bkhd,bnkd->bkhn", query, candidates), "float32")
        scores = scores * (self.query_kernel.shape[-1] ** -0.5)
        weights = softmax(ops.where(candidate_mask[:, None, None, :], scores, HIDDEN))
        read = ops.einsum("bkhn,bnkd->bkhd", ops.cast(weights, candidates.dtype), candidates)
        values = ops.einsum("bkhd,kdhe->bkhe", read, self.value_kernel)
        return ops.einsum("bkhe,khed->bkd", values, self.merge_kernel)

    def compute_output_shape(self, queries_shape: Any, candidates_shape: Any) -> Any:
        """[B, K, d]."""
        return tuple(queries_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads}
