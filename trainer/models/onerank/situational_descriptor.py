"""OneRank's situational descriptor: who asks, when and where, as one query per task."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.layers.initializers import glorot_of_one
from trainer.layers.token_norm import TokenNorm


@keras.saving.register_keras_serializable(package="onerank")
class SituationalDescriptor(keras.layers.Layer):
    """Turns the user's profile and the request's context into a vector s, and s into a query q_k = f_k(s) per task.

    Args:
        tasks: int. K, the number of tasks.
        d: int. The queries' width.

    Call arguments:
        user: Float [B, D]. The user's features.
        context: Float [B, C], optional. The request's features: time, place, device.

    Returns:
        Float [B, K, d]. A query per task.

    Raises:
        ValueError: when `tasks` or `d` is below 1.

    Example:
    ```python
    SituationalDescriptor(tasks=3, d=8)(np.ones((2, 20)), np.ones((2, 6)))  # [2, 3, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), candidate-aware contextualization. Ours: s = GELU of a dense
          layer with layer normalisation, f_k = a dense layer with GELU.
    """

    def __init__(self, tasks: int, d: int, **kwargs: Any):
        super().__init__(**kwargs)
        if tasks < 1 or d < 1:
            raise ValueError(f"`tasks` and `d` should be at least 1. Received: `tasks={tasks}`, `d={d}`.")
        self.tasks = tasks
        self.d = d

    def build(self, user_shape: Any, context_shape: Any = None) -> None:
        """Creates the weights; the matrices of all tasks are one variable."""
        width = user_shape[-1] + (context_shape[-1] if context_shape else 0)
        self.describe = keras.layers.Dense(self.d, "gelu", dtype=self.dtype_policy, name="describe")
        self.describe.build((None, width))
        self.norm = TokenNorm(dtype=self.dtype_policy, name="norm")
        self.norm.build((None, self.d))
        self.query_kernel = self.add_weight(
            shape=(self.tasks, self.d, self.d),
            initializer=glorot_of_one(self.d, self.d),
            name="query_kernel",
        )
        self.query_bias = self.add_weight(shape=(self.tasks, self.d), initializer="zeros", name="query_bias")
        self.built = True

    def call(self, user: Any, context: Any = None) -> Any:
        """The queries."""
        situation = user if context is None else ops.concatenate([user, context], axis=-1)  # [B, D + C]
        described = self.norm(self.describe(situation))  # [B, d]
        queries = ops.matmul(described, self.query_kernel)  # [K, B, d]; an einsum would transpose the kernel
        queries = ops.transpose(queries, (1, 0, 2))  # [B, K, d]
        return ops.gelu(queries + self.query_bias, approximate=False)  # [B, K, d]

    def compute_output_shape(self, user_shape: Any, context_shape: Any = None) -> Any:
        """[B, K, d]."""
        return (user_shape[0], self.tasks, self.d)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "tasks": self.tasks, "d": self.d}
