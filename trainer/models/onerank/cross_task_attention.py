"""OneRank's controlled interaction: tasks read each other under a mask, and send each other no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.ops.attention.softmax import HIDDEN

NAMED = ("parallel", "full", "cascade")


@keras.saving.register_keras_serializable(package="onerank")
class CrossTaskAttention(keras.layers.Layer):
    """Attention between tasks: h~ = attention, h^ = LN(h~) + h, z = LN(FFN(h^)) + h^.

    Task k reads h_j where `visibility` lets it, and with `detach` sends it no gradient: for j != k, keys and values are
    projections of h_j with the gradient stopped. It is stopped before the projections, not after, so that these, which
    all tasks share, learn from what is read of other tasks. The mask acts before the softmax: a task that is hidden
    takes no share.

    Args:
        visibility: str or matrix [K, K]. `"parallel"` (each task for itself), `"full"`, `"cascade"` (task k reads
            tasks up to k, in their order), or for each reading task k the weights A[k, j] in [0, 1] of the tasks that
            are read, 1 on the diagonal. Defaults to `"cascade"`.
        heads: int. H, the attention heads; divides d. Defaults to 4.
        ffn_ratio: int. The width of the feed-forward network's hidden layer over d. Defaults to 4.
        detach: bool. Whether gradients between tasks are stopped. Defaults to True.

    Call arguments:
        tasks: Float [B, K, d]. A vector a task, in the order of the cascade.

    Returns:
        Float [B, K, d].

    Example:
    ```python
    CrossTaskAttention("cascade", heads=2)(np.ones((2, 3, 8)))  # [2, 3, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), controlled cross-task interaction. Ours: the cascade as default,
          weights between 0 and 1 in a matrix, GELU, no biases in the attention's projections.
    """

    def __init__(
        self,
        visibility: str | Sequence[Sequence[float]] = "cascade",
        heads: int = 4,
        ffn_ratio: int = 4,
        detach: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if heads < 1 or ffn_ratio < 1:
            raise ValueError(
                "`heads` and `ffn_ratio` should be at least 1. "
                f"Received: `heads={heads}`, `ffn_ratio={ffn_ratio}`. Use 4 and 4."
            )
        if isinstance(visibility, str):
            visibility_matrix(visibility, 1)
            self.visibility: Any = visibility
        else:
            self.visibility = [[float(weight) for weight in row] for row in visibility]
        self.heads = heads
        self.ffn_ratio = ffn_ratio
        self.detach = detach

    def build(self, tasks_shape: Any) -> None:
        """Creates the weights and the logarithms of the shares that tasks may read, [K, 2 K]."""
        k, d = tasks_shape[-2:]
        if d % self.heads:
            raise ValueError(f"`heads` should divide d. Received: `heads={self.heads}`, d = {d}. Use 4 heads and d 64.")
        own, weights = np.eye(k), visibility_matrix(self.visibility, k)
        shares = np.concatenate([own, weights * (1 - own)], axis=1)
        self.log_shares = np.where(shares > 0, np.log(np.maximum(shares, 1e-30)), HIDDEN).astype("float32")
        dtype = self.dtype_policy
        self.project_query = TokenDense(d, use_bias=False, dtype=dtype, name="query")
        self.project_key_value = TokenDense(2 * d, use_bias=False, dtype=dtype, name="key_value")
        self.merge = TokenDense(d, use_bias=False, dtype=dtype, name="merge_heads")
        self.attention_norm = TokenNorm(dtype=dtype, name="attention_norm")
        self.ffn_in = TokenDense(self.ffn_ratio * d, "gelu", dtype=dtype, name="ffn_in")
        self.ffn_out = TokenDense(d, dtype=dtype, name="ffn_out")
        self.ffn_norm = TokenNorm(dtype=dtype, name="ffn_norm")
        for layer in (self.project_query, self.project_key_value, self.merge, self.attention_norm, self.ffn_in):
            layer.build((None, k, d))
        self.ffn_out.build((None, k, self.ffn_ratio * d))
        self.ffn_norm.build((None, k, d))
        self.built = True

    def call(self, tasks: Any) -> Any:
        """The tasks' vectors after reading each other."""
        read = self.attention_norm(self.merge(self._attend(tasks))) + tasks
        return self.ffn_norm(self.ffn_out(self.ffn_in(read))) + read

    def _attend(self, tasks: Any) -> Any:
        """Attention [B, K, d] in which a task's own key and value alone carry gradient to it."""
        k, depth = tasks.shape[1], tasks.shape[2] // self.heads
        # Each twice: a task reads itself among the first, the others among the second, as `log_shares` says.
        twice = ops.concatenate([tasks, ops.stop_gradient(tasks) if self.detach else tasks], axis=1)
        of_each = (-1, 1, 2 * k, self.heads, depth)
        keys, values = (ops.reshape(part, of_each) for part in ops.split(self.project_key_value(twice), 2, axis=-1))
        queries = ops.reshape(self.project_query(tasks), (-1, k, 1, self.heads, depth))
        # Sums of products, in float32: matrix products of so few numbers would take longer.
        scores = ops.sum(ops.cast(queries, "float32") * ops.cast(keys, "float32"), axis=-1) * (depth**-0.5)
        scores = scores + self.log_shares[..., None]  # [B, K, 2 K, H]
        weights = ops.exp(scores - ops.logsumexp(scores, axis=2, keepdims=True))
        read = ops.sum(ops.expand_dims(weights, -1) * ops.cast(values, "float32"), axis=2)
        return ops.cast(ops.reshape(read, (-1, *tasks.shape[1:])), tasks.dtype)

    def compute_output_shape(self, tasks_shape: Any) -> Any:
        """[B, K, d]."""
        return tuple(tasks_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "visibility": self.visibility,
            "heads": self.heads,
            "ffn_ratio": self.ffn_ratio,
            "detach": self.detach,
        }


def visibility_matrix(visibility: str | Sequence[Sequence[float]], tasks: int) -> np.ndarray:
    """A[k, j]: what task k may read of task j.

    Args:
        visibility: str or matrix, as `CrossTaskAttention` takes it.
        tasks: int. K.

    Returns:
        Float [K, K], 1 on the diagonal.

    Raises:
        ValueError: when a name is unknown, or a matrix has another shape, a weight outside [0, 1], or a task that does
            not see itself.
    """
    if isinstance(visibility, str):
        if visibility not in NAMED:
            raise ValueError(
                f"`visibility` should be one of {NAMED} or a matrix. Received: `{visibility}`. Use cascade."
            )
        named = {"parallel": np.eye(tasks), "full": np.ones((tasks, tasks)), "cascade": np.tri(tasks)}
        return named[visibility]
    weights = np.array(visibility, "float32") if len({len(row) for row in visibility}) == 1 else np.zeros(0)
    if weights.shape != (tasks, tasks):
        raise ValueError(
            f"`visibility` should be a matrix of {tasks} by {tasks}, a row a task. Received: `{visibility}`. "
            "Give each task a row in their order."
        )
    if not ((weights >= 0) & (weights <= 1)).all() or not (np.diag(weights) == 1).all():
        raise ValueError(
            "`visibility` should hold weights from 0 to 1, with 1 on the diagonal (each task sees itself). "
            f"Received: `{visibility}`. Write 1 there, and 0 for what a task should not read."
        )
    return weights
