"""`Head`: what every head keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

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


def check_widths(least: int = 1, **settings: Sequence[int]) -> None:
    """Raises a ValueError unless each setting is a list of at least `least` widths, all of them positive."""
    for name, widths in settings.items():
        if len(widths) < least or any(width < 1 for width in widths):
            raise ValueError(
                f"`{name}` should be a list of widths, all at least 1. Received: `{name}={list(widths)}`. "
                f"Use for example `{name}: [128, 64]`."
            )


def check_dropout(dropout: float) -> None:
    """Raises a ValueError unless the dropout is a share below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` should be in [0, 1). Received: `dropout={dropout}`.")
