"""Single-task: the head in which tasks share nothing, the control of every claim about sharing."""

from __future__ import annotations

from typing import Any

import keras

from trainer.heads.base import NetworkHead
from trainer.heads.registry import HEADS
from trainer.layers.stacked_dense import StackedDense


@HEADS.register("single_task")
@keras.saving.register_keras_serializable(package="onerank")
class SingleTask(NetworkHead):
    """One network per task, from the backbone's vector to the logit.

    The tasks still share the embeddings and the backbone. To share nothing at all, train a model per task.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.
        hidden: sequence of int. The widths of each network's layers. Defaults to `(128, 64)`.
        dropout: float. The share of hidden values dropped in training. Defaults to 0.0.

    Calls take and give what `Head` says; widths and dropout are checked.

    Example:
    ```python
    SingleTask([Task("click"), Task("like")], hidden=(32,))(np.ones((2, 5, 16)))  # [2, 5, 2]
    ```
    """

    def build(self, input_shape: Any) -> None:
        """Creates the weights: a layer of all networks is one variable."""
        tasks, shape = len(self.tasks), tuple(input_shape)
        self.networks = []
        for width in self.hidden:
            layer = StackedDense(tasks, width, "relu", stacked_inputs=len(shape) == 4, dtype=self.dtype_policy)
            layer.build(shape)
            self.networks.append(layer)
            shape = (None, None, tasks, width)
        self.build_logits(shape[-1])
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The logits."""
        x = inputs  # [B, N, D] or [B, N, K, D]
        for layer in self.networks:
            x = self.drop(layer(x), training=training)  # [B, N, K, width]
        return self.logits(x)  # [B, N, K]
