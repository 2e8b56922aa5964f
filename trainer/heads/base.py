"""`Head`: what every head keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from trainer.layers.task_logits import TaskLogits
from transform.features.model_inputs import Task


class Head(keras.layers.Layer):
    """Base of all heads: one logit per task from the vectors that a backbone makes of a candidate.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.

    Call arguments:
        inputs: Float [B, N, D], one vector per candidate, or [B, N, K, D], one per candidate and task.
        training: bool.

    Returns:
        Float32 [B, N, K]. The logits.
    """

    def __init__(self, tasks: Sequence[Task | dict[str, Any]], **kwargs: Any):
        super().__init__(**kwargs)
        if not tasks:
            raise ValueError("`tasks` should hold at least one task. Received: none.")
        self.tasks = tuple(task if isinstance(task, Task) else Task(**task) for task in tasks)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The logits [B, N, K]."""
        raise NotImplementedError(f"`{type(self).__name__}` should define `call`.")

    def initial_bias(self) -> keras.Variable | None:
        """The bias [K] of the logits, which training starts at the tasks' base rates; None if there is none."""
        return None

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """[B, N, K]."""
        return keras.KerasTensor((*inputs.shape[:2], len(self.tasks)), "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "tasks": [task.to_config() for task in self.tasks]}


class NetworkHead(Head):
    """Base of heads that are networks of dense layers with a logit per task, `self.logits`, behind them.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.
        hidden: sequence of int. The widths of the network's layers. Defaults to `(128, 64)`.
        dropout: float. The share of hidden values dropped in training. Defaults to 0.0.

    Raises:
        ValueError: when a width or the dropout is out of range.
    """

    logits: TaskLogits

    def __init__(
        self,
        tasks: Sequence[Task | dict[str, Any]],
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(tasks, **kwargs)
        check_widths(hidden=hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` should be in [0, 1). Received: `dropout={dropout}`.")
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.make_layers()
        self.drop = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def make_layers(self) -> None:
        """Makes the layers that `hidden` alone decides; by default all are made in `build`, from the inputs' shape."""

    def build_logits(self, width: int) -> None:
        """Creates the layer that makes logits [B, N, K] of vectors [B, N, K, width]."""
        self.logits = TaskLogits(dtype=self.dtype_policy, name="logits")
        self.logits.build((None, None, len(self.tasks), width))

    def initial_bias(self) -> keras.Variable:
        """The bias [K] of the logits."""
        return self.logits.bias

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "hidden": list(self.hidden), "dropout": self.dropout}


def check_widths(least: int = 1, **settings: Sequence[int]) -> None:
    """Raises a ValueError unless each setting is a list of at least `least` widths, all of them positive."""
    for name, widths in settings.items():
        if len(widths) < least or any(width < 1 for width in widths):
            raise ValueError(
                f"`{name}` should be a list of widths, all at least 1. Received: `{name}={list(widths)}`. "
                f"Use for example `{name}: [128, 64]`."
            )
