"""The loss of most ranking models: point-wise, with a list-wise term beside it if asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from trainer.losses.base import RankingLoss
from trainer.losses.masked import masked_bce, masked_infonce, zero_where_masked
from trainer.losses.registry import LOSSES
from transform.features.model_inputs import Task

LOWEST_TEMPERATURE = 0.01


@LOSSES.register("pointwise")
@keras.saving.register_keras_serializable(package="onerank")
class PointwiseLoss(RankingLoss):
    """Binary cross-entropy of each task, and InfoNCE over the request's candidates beside it.

    The loss of task k is w_k (BCE_k + infonce * InfoNCE_k), w_k the task's weight. The temperature of InfoNCE is
    learned, one per task. Padded candidates and missing labels are in neither term. A request takes part in InfoNCE if
    it holds a positive and a negative of the task.

    Args:
        tasks: sequence of Task, or of their configs. The K tasks.
        infonce: float. The weight of InfoNCE. Defaults to 0.0, and then there is no temperature.
        temperature: float. Where the temperatures start; they stay above 0.01. Defaults to 1.0.

    Calls take and give what `RankingLoss` says.

    Raises:
        ValueError: when `infonce` is negative or `temperature` is not above its bound.

    Example:
    ```python
    labels = np.array([[[1.0], [0.0], [0.0]]])
    PointwiseLoss([Task("click")], infonce=0.1)(np.zeros((1, 3, 1)), labels, np.ones((1, 3, 1)))  # [1]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), loss. Ours: one temperature per task, its bound and its start
          (the logits are those that BCE calibrates, and at 1 both terms want the same scale of them), and that a
          request's loss is the mean over its positives.
    """

    def __init__(
        self,
        tasks: Sequence[Task | dict[str, Any]],
        infonce: float = 0.0,
        temperature: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(tasks, **kwargs)
        if not (0 <= infonce < math.inf and LOWEST_TEMPERATURE < temperature < math.inf):
            raise ValueError(
                f"`infonce` should be at least 0 and `temperature` above {LOWEST_TEMPERATURE}. "
                f"Received: `infonce={infonce}`, `temperature={temperature}`."
            )
        self.infonce = infonce
        self.temperature = temperature

    def build(self, *_: Any) -> None:
        """Creates the temperatures, if there is a list-wise term."""
        self.log_temperature = None
        if self.infonce:
            start = keras.initializers.Constant(math.log(self.temperature - LOWEST_TEMPERATURE))
            self.log_temperature = self.add_weight(
                shape=(len(self.tasks),), initializer=start, name="log_temperature", autocast=False
            )  # a bfloat16 logarithm would move in steps of a hundredth
        self.built = True

    def call(self, logits: Any, labels: Any, weights: Any) -> Any:
        """The loss of each task [K]."""
        logits, labels, weights = (ops.cast(values, "float32") for values in (logits, labels, weights))  # [B, N, K]
        logits = zero_where_masked(logits, weights)  # before the division: NaN would be in the temperature's gradient
        losses = masked_bce(logits, labels, weights)  # [K]
        if self.log_temperature is not None:
            # a bound that keeps its gradient: what falls to it can rise again
            temperature = LOWEST_TEMPERATURE + ops.exp(self.log_temperature)  # [K]
            losses = losses + self.infonce * masked_infonce(logits / temperature, labels, weights)  # [K]
        return losses * self.task_weights

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "infonce": self.infonce, "temperature": self.temperature}
