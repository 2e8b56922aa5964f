"""Shared-bottom: the head in which all tasks share a network and each has a small tower."""

from __future__ import annotations

from typing import Any

import keras

from trainer.heads.base import NetworkHead
from trainer.heads.registry import HEADS
from trainer.layers.stacked_dense import StackedDense
from trainer.layers.token_dense import TokenDense


@HEADS.register("shared_bottom")
@keras.saving.register_keras_serializable(package="onerank")
class SharedBottom(NetworkHead):
    """One network for all tasks, then a tower and a logit per task.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.
        hidden: sequence of int. The widths of the shared layers; the last is the towers' width too. Defaults to
            `(128, 64)`.
        dropout: float. The share of hidden values dropped in training. Defaults to 0.0.

    Calls take and give what `Head` says; widths and dropout are checked.

    Example:
    ```python
    tasks = [Task("click"), Task("like"), Task("share")]
    SharedBottom(tasks, hidden=(64, 32))(np.ones((2, 5, 16)))  # [2, 5, 3]
    ```

    References:
        - [Multitask Learning](https://doi.org/10.1023/A:1007379606734), Caruana 1997.
    """

    def make_layers(self) -> None:
        """Makes the network that all tasks share."""
        self.bottom = [TokenDense(width, "relu", dtype=self.dtype_policy) for width in self.hidden]

    def build(self, input_shape: Any) -> None:
        """Creates the weights: the towers of all tasks are one variable."""
        shape = tuple(input_shape)
        for layer in self.bottom:
            layer.build(shape)
            shape = (*shape[:-1], layer.units)
        width, tasks = self.hidden[-1], len(self.tasks)
        self.towers = StackedDense(
            tasks, width, "relu", stacked_inputs=len(shape) == 4, dtype=self.dtype_policy, name="towers"
        )
        self.towers.build(shape)
        self.build_logits(width)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The logits."""
        x = inputs  # [B, N, D] or [B, N, K, D]
        for layer in self.bottom:
            x = self.drop(layer(x), training=training)  # [B, N, width] or [B, N, K, width]
        return self.logits(self.towers(x))  # [B, N, K, width] -> [B, N, K]
