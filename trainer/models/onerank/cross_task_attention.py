"""OneRank's controlled interaction: tasks attend to each other under a mask, without gradients between them."""

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

    Task k attends to h_j where `visibility` allows it. With `detach`, its loss sends no gradient to h_j: for j != k,
    keys and values are projections of h_j with the gradient stopped. The gradient is stopped before the projections,
    not after them, so that the projections, which all tasks share, also learn from attention to other tasks. The mask
    is applied before the softmax: a hidden task has a weight of exactly 0.

    Args:
        visibility: str or matrix [K, K]. `"parallel"` (each task attends to itself only), `"full"` (to all tasks),
            `"cascade"` (to itself and earlier tasks), or weights A[k, j] in [0, 1] that say how much task k may attend
            to task j, 1 on the diagonal. Defaults to `"cascade"`.
        heads: int. H, the attention heads; divides d. Defaults to 4.
        ffn_ratio: int. The width of the feed-forward network's hidden layer, as a multiple of d. Defaults to 4.
        detach: bool. Whether gradients between tasks are stopped. Defaults to True.

    Call arguments:
        tasks: Float [B, K, d]. A vector per task, in the order of the cascade.

    Returns:
        Float [B, K, d].

    Raises:
        ValueError: when `heads` or `ffn_ratio` is below 1, `heads` does not divide d, or `visibility` is invalid.

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
                f"`heads` and `ffn_ratio` should be at least 1. Received: `heads={heads}`, `ffn_ratio={ffn_ratio}`."
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
        """Creates the weights, and the logarithms of how much a task may attend to itself and to others, [K, 2 K]."""
        k, d = tasks_shape[-2:]
        if d % self.heads:
            raise ValueError(
                "`heads` should divide d, since each head takes an equal part of the width. "
                f"Received: `heads={self.heads}`, d = {d}."
            )
        own, weights = np.eye(k), visibility_matrix(self.visibility, k)  # [K, K] each
        shares = np.concatenate([own, weights * (1 - own)], axis=1)  # [K, 2 K]
        self.log_shares = np.where(shares > 0, np.log(np.maximum(shares, 1e-30)), HIDDEN).astype("float32")  # [K, 2 K]
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
        """The tasks' vectors after the attention between them."""
        read = self.attention_norm(self.merge(self._attend(tasks))) + tasks  # [B, K, d]
        return self.ffn_norm(self.ffn_out(self.ffn_in(read))) + read  # [B, K, d]

    def _attend(self, tasks: Any) -> Any:
        """Attention [B, K, d] in which a task gets gradients through its own key and value only."""
        k, depth = tasks.shape[1], tasks.shape[2] // self.heads
        # Every task is there twice: `log_shares` lets a task attend to itself in the first half, and to the other tasks
        # in the second half, where the gradient is stopped.
        twice = ops.concatenate([tasks, ops.stop_gradient(tasks) if self.detach else tasks], axis=1)  # [B, 2 K, d]
        key, value = ops.split(self.project_key_value(twice), 2, axis=-1)  # [B, 2 K, d] each
        keys, values = (
            ops.reshape(projected, (-1, 1, 2 * k, self.heads, depth)) for projected in (key, value)
        )  # [B, 1, 2 K, H, d/H] each
        queries = ops.reshape(self.project_query(tasks), (-1, k, 1, self.heads, depth))  # [B, K, 1, H, d/H]
        # Sums of products, in float32: matrix products of so few numbers would be slower.
        products = ops.cast(queries, "float32") * ops.cast(keys, "float32")  # [B, K, 2 K, H, d/H]
        scores = ops.sum(products, axis=-1) * (depth**-0.5)  # [B, K, 2 K, H]
        scores = scores + self.log_shares[..., None]  # [B, K, 2 K, H]
        weights = ops.exp(scores - ops.logsumexp(scores, axis=2, keepdims=True))  # [B, K, 2 K, H]
        read = ops.sum(ops.expand_dims(weights, -1) * ops.cast(values, "float32"), axis=2)  # [B, K, H, d/H]
        return ops.cast(ops.reshape(read, (-1, *tasks.shape[1:])), tasks.dtype)  # [B, K, d]

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
    """A[k, j]: how much task k may attend to task j.

    Args:
        visibility: str or matrix, as `CrossTaskAttention` takes it.
        tasks: int. K.

    Returns:
        Float [K, K], 1 on the diagonal.

    Raises:
        ValueError: when a name is unknown, or a matrix has another shape, a weight outside [0, 1], or a task that does
            not attend to itself.
    """
    if isinstance(visibility, str):
        if visibility not in NAMED:
            raise ValueError(f"`visibility` should be one of {NAMED} or a matrix. Received: `{visibility}`.")
        named = {"parallel": np.eye(tasks), "full": np.ones((tasks, tasks)), "cascade": np.tri(tasks)}
        return named[visibility]
    weights = np.array(visibility, "float32") if len({len(row) for row in visibility}) == 1 else np.zeros(0)
    if weights.shape != (tasks, tasks):
        raise ValueError(
            f"`visibility` should be a matrix of {tasks} by {tasks}, one row per task. Received: `{visibility}`. "
            "Give each task a row, in the order of the tasks."
        )
    if not ((weights >= 0) & (weights <= 1)).all() or not (np.diag(weights) == 1).all():
        raise ValueError(
            "`visibility` should hold weights from 0 to 1, with 1 on the diagonal (each task attends to itself). "
            f"Received: `{visibility}`. Write 0 where a task should not attend to another."
        )
    return weights
