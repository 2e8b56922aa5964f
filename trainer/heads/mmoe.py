"""MMoE: the head in which all tasks share experts and each mixes them by a gate of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from trainer.heads.base import NetworkHead, check_widths
from trainer.heads.registry import HEADS
from trainer.layers.stacked_dense import StackedDense
from transform.features.model_inputs import Task


@HEADS.register("mmoe")
@keras.saving.register_keras_serializable(package="onerank")
class MMoE(NetworkHead):
    """E experts for all tasks; per task a softmax gate that mixes them, then a tower and a logit.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.
        experts: int. E, the number of experts. Defaults to 4.
        hidden: sequence of int. The widths of each expert's layers. Defaults to `(128, 64)`.
        tower: sequence of int. The widths of each task's tower; an empty one is the logit alone. Defaults to `(64,)`.
        dropout: float. The share of hidden values dropped in training. Defaults to 0.0.

    Call arguments:
        inputs: Float [B, N, D], one vector per candidate, or [B, N, K, D], one per candidate and task: then the experts
            of a task run on the task's vector.
        training: bool.

    Returns:
        Float32 [B, N, K]. The logits, float32 whatever the dtype policy.

    Raises:
        ValueError: when a number, a width or the dropout is out of range.

    Example:
    ```python
    MMoE([Task("click"), Task("like")], experts=3, hidden=(32,))(np.ones((2, 5, 16)))  # [2, 5, 2]
    ```

    References:
        - [Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts](
          https://doi.org/10.1145/3219819.3220007), KDD 2018: equations 5 to 7. Ours: the widths, the dropout, and that
          the gates' softmax is computed in float32.
    """

    def __init__(
        self,
        tasks: Sequence[Task | dict[str, Any]],
        experts: int = 4,
        hidden: Sequence[int] = (128, 64),
        tower: Sequence[int] = (64,),
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(tasks, hidden, dropout, **kwargs)
        if experts < 1:
            raise ValueError(f"`experts` should be at least 1. Received: `experts={experts}`.")
        check_widths(least=0, tower=tower)
        self.experts = experts
        self.tower = tuple(tower)

    def build(self, input_shape: Any) -> None:
        """Creates the weights: a layer of all experts is one variable, as is one of all towers."""
        tasks, shape, dtype = len(self.tasks), tuple(input_shape), self.dtype_policy
        per_task = len(shape) == 4
        self.gates = StackedDense(tasks, self.experts, stacked_inputs=per_task, dtype=dtype, name="gates")
        self.gates.build(shape)
        self.expert_layers: list[StackedDense] = []
        self.tower_layers: list[StackedDense] = []
        for width in self.hidden:
            layer = StackedDense(self.experts, width, "relu", stacked_inputs=bool(self.expert_layers), dtype=dtype)
            layer.build(shape)
            self.expert_layers.append(layer)
            shape = (*input_shape[:-1], self.experts, width)
        shape = (None, None, tasks, self.hidden[-1])
        for width in self.tower:
            layer = StackedDense(tasks, width, "relu", stacked_inputs=True, dtype=dtype)
            layer.build(shape)
            self.tower_layers.append(layer)
            shape = (None, None, tasks, width)
        self.build_logits(shape[-1])
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The logits."""
        gates = ops.softmax(ops.cast(self.gates(inputs), "float32"), axis=-1)  # [B, N, K, E]
        x = inputs  # [B, N, D] or [B, N, K, D]
        for layer in self.expert_layers:
            x = self.drop(layer(x), training=training)  # [B, N, E, width] or [B, N, K, E, width]
        equation = "bnke,bned->bnkd" if len(inputs.shape) == 3 else "bnke,bnked->bnkd"
        x = ops.einsum(equation, ops.cast(gates, x.dtype), x)  # [B, N, K, width]
        for layer in self.tower_layers:
            x = self.drop(layer(x), training=training)  # [B, N, K, width]
        return self.logits(x)  # [B, N, K]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "experts": self.experts, "tower": list(self.tower)}
