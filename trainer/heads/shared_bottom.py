"""Shared-bottom: the predictor in which all tasks share a network and own a small tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from trainer.layers.token_dense import TokenDense


@keras.saving.register_keras_serializable(package="onerank")
class SharedBottom(keras.layers.Layer):
    """One network for all tasks, then a tower and a logit a task.

    Args:
        tasks: int. K, the number of tasks.
        hidden: sequence of int. The widths of the shared layers; the last is the towers' width too.
        dropout: float. The share of hidden values dropped in training. Defaults to 0.0.

    Call arguments:
        inputs: Float [B, N, D].
        training: bool.

    Returns:
        Float32 [B, N, K]. The logits, float32 whatever the dtype policy.

    Example:
    ```python
    SharedBottom(tasks=3, hidden=(64, 32))(np.ones((2, 5, 16)))  # [2, 5, 3]
    ```

    References:
        - [Multitask Learning](https://doi.org/10.1023/A:1007379606734), Caruana 1997.
    """

    def __init__(self, tasks: int, hidden: Sequence[int] = (128, 64), dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        if tasks < 1 or not hidden or min(hidden) < 1:
            raise ValueError(
                "`tasks` should be at least 1 and `hidden` a list of widths. "
                f"Received: `tasks={tasks}`, `hidden={hidden}`. Use `hidden: [128, 64]`."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` should be in [0, 1). Received: `dropout={dropout}`. Use 0.1.")
        self.tasks = tasks
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.bottom = [TokenDense(width, "relu", dtype=self.dtype_policy) for width in self.hidden]
        self.drop = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates the weights: the towers of all tasks are one variable each."""
        shape = tuple(input_shape)
        for layer in self.bottom:
            layer.build(shape)
            shape = (*shape[:-1], layer.units)
        width = self.hidden[-1]
        # one fan-in a task: the glorot limits of a [width, width] matrix, not of the stack
        limit = (3.0 / width) ** 0.5
        # an initializer each: one alone would draw the same numbers for both
        towers, logits = (keras.initializers.RandomUniform(-limit, limit) for _ in range(2))
        self.tower_kernel = self.add_weight(shape=(self.tasks, width, width), initializer=towers, name="tower")
        self.tower_bias = self.add_weight(shape=(self.tasks, width), initializer="zeros", name="tower_bias")
        # no autocast: a bfloat16 logit moves in steps of 1/64 at a base rate of 5 %
        self.logit_kernel = self.add_weight(shape=(self.tasks, width), initializer=logits, name="logit", autocast=False)
        self.logit_bias = self.add_weight(shape=(self.tasks,), initializer="zeros", name="logit_bias", autocast=False)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The logits."""
        x = inputs
        for layer in self.bottom:
            x = self.drop(layer(x), training=training)
        towers = ops.relu(ops.einsum("bnd,kde->bnke", x, self.tower_kernel) + self.tower_bias)
        return ops.einsum("bnke,ke->bnk", ops.cast(towers, "float32"), self.logit_kernel) + self.logit_bias

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """[B, N, K]."""
        return keras.KerasTensor((*inputs.shape[:-1], self.tasks), "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "tasks": self.tasks, "hidden": list(self.hidden), "dropout": self.dropout}
