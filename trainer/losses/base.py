"""`RankingLoss`: what every loss keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from transform.features.model_inputs import Task


class RankingLoss(keras.layers.Layer):
    """Base of all losses: one value per task from the logits and labels of a batch of requests.

    A loss is a layer, so that it may have weights of its own, which are trained beside the model's (`PointwiseLoss`
    learns temperatures). It gets the tasks as records: a loss may need to know which task is observed only when
    another one is positive.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.

    Call arguments:
        logits: Float [B, N, K].
        labels: Float [B, N, K], 0 or 1.
        weights: Float [B, N, K]. The weight of each label; 0 for padded candidates and missing labels.

    Returns:
        Float32 [K]. The loss of each task; their sum is minimised.
    """

    def __init__(self, tasks: Sequence[Task | dict[str, Any]], **kwargs: Any):
        super().__init__(**kwargs)
        if not tasks:
            raise ValueError("`tasks` should hold at least one task. Received: none.")
        self.tasks = tuple(task if isinstance(task, Task) else Task(**task) for task in tasks)

    @property
    def task_weights(self) -> Any:
        """The weights of the tasks' losses, float32 [K], as the spec gives them."""
        return ops.convert_to_tensor([task.weight for task in self.tasks], "float32")

    def build(self, *_: Any) -> None:
        """Creates the loss's own weights before any graph is traced; none by default."""
        self.built = True

    def call(self, logits: Any, labels: Any, weights: Any) -> Any:
        """The loss of each task [K]."""
        raise NotImplementedError(f"`{type(self).__name__}` should define `call`.")

    def compute_output_spec(self, logits: Any, labels: Any, weights: Any) -> Any:
        """[K]."""
        return keras.KerasTensor((len(self.tasks),), "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "tasks": [task.to_config() for task in self.tasks]}
