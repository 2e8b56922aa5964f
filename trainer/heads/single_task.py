"""Single-task: the head in which tasks share nothing, the control of every claim about sharing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from trainer.heads.base import Head, check_dropout, check_widths
from trainer.heads.registry import HEADS
from trainer.layers.stacked_dense import StackedDense
from trainer.layers.task_logits import TaskLogits
from transform.features.model_inputs import Task


@HEADS.register("single_task")
@keras.saving.register_keras_serializable(package="onerank")
class SingleTask(Head):
    """One network per task, from the backbone's vector to the logit.

    The tasks still share the embeddings and the backbone. To share nothing at all, train a model per task.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.
        hidden: sequence of int. The widths of each network's layers. Defaults to `(128, 64)`.
        dropout: float. The share of hidden values dropped in training. Defaults to 0.0.

    Call arguments:
        inputs: Float [B, N, D], one vector per candidate, or [B, N, K, D], one per candidate and task.
        training: bool.

    Returns:
        Float32 [B, N, K]. The logits, float32 whatever the dtype policy.

    Raises:
        ValueError: when a width or the dropout is out of range.

    Example:
    ```python
    SingleTask([Task("click"), Task("like")], hidden=(32,))(np.ones((2, 5, 16)))  # [2, 5, 2]
    ```
    """

    def __init__(
        self,
        tasks: Sequence[Task | dict[str, Any]],
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(tasks, **kwargs)
        check_widths(hidden=hidden)
        check_dropout(dropout)
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.drop = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates the weights: a layer of all networks is one variable."""
        tasks, shape = len(self.tasks), tuple(input_shape)
        self.networks = []
        for width in self.hidden:
            layer = StackedDense(tasks, width, "relu", stacked_inputs=len(shape) == 4, dtype=self.dtype_policy)
            layer.build(shape)
            self.networks.append(layer)
            shape = (None, None, tasks, width)
        self.logits = TaskLogits(dtype=self.dtype_policy, name="logits")
        self.logits.build(shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The logits."""
        x = inputs  # [B, N, D] or [B, N, K, D]
        for layer in self.networks:
            x = self.drop(layer(x), training=training)  # [B, N, K, width]
        return self.logits(x)  # [B, N, K]

    def initial_bias(self) -> keras.Variable:
        """The bias [K] of the logits."""
        return self.logits.bias

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "hidden": list(self.hidden), "dropout": self.dropout}
