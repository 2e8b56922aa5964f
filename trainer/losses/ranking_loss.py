"""The loss of all ranking models: point-wise and list-wise, a value a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from trainer.losses.masked import masked_bce, masked_infonce, zero_where_masked

LOWEST_TEMPERATURE = 0.01


@keras.saving.register_keras_serializable(package="onerank")
class RankingLoss(keras.layers.Layer):
    """w_k (BCE_k + infonce * InfoNCE_k) for each task k. The temperature of InfoNCE is learned, one a task.

    Padded candidates and missing labels are in neither term. A request has a part in InfoNCE if it holds a positive
    and a negative of the task.

    Args:
        weights: sequence of K floats. The tasks' weights w_k.
        infonce: float. The weight of InfoNCE. Defaults to 0.0, and then there is no temperature.
        temperature: float. Where the temperatures start; they stay above 0.01. Defaults to 1.0.

    Call arguments:
        logits: Float [B, N, K].
        labels: Float [B, N, K], 0 or 1.
        observed: Float [B, N, K]. 0 for padded candidates and missing labels.

    Returns:
        Float32 [K]. The tasks' losses; their sum is what is minimised.

    Example:
    ```python
    labels = np.array([[[1.0], [0.0], [0.0]]])
    RankingLoss(weights=[1.0], infonce=0.1)(np.zeros((1, 3, 1)), labels, np.ones((1, 3, 1)))  # [1]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), loss. Ours: one temperature a task, its bound and its start (the
          logits are those that BCE calibrates, and at 1 both terms want the same scale of them), and that a request's
          loss is the mean over its positives.
    """

    def __init__(self, weights: Sequence[float], infonce: float = 0.0, temperature: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        if not weights or min(weights) <= 0 or infonce < 0 or temperature <= LOWEST_TEMPERATURE:
            raise ValueError(
                f"Positive `weights`, `infonce` from 0 and `temperature` above {LOWEST_TEMPERATURE} are expected. "
                f"Received: `weights={weights}`, `infonce={infonce}`, `temperature={temperature}`. "
                "Use a weight of 1 a task, 0.1 and 1.0."
            )
        self.weights_of_tasks = tuple(float(weight) for weight in weights)
        self.infonce = infonce
        self.temperature = temperature

    def build(self, *_: Any) -> None:
        """Creates the temperatures, if there is a list-wise term."""
        self.log_temperature = None
        if self.infonce:
            start = keras.initializers.Constant(math.log(self.temperature - LOWEST_TEMPERATURE))
            self.log_temperature = self.add_weight(
                shape=(len(self.weights_of_tasks),), initializer=start, name="log_temperature", autocast=False
            )  # a bfloat16 logarithm would move in steps of a hundredth
        self.built = True

    def call(self, logits: Any, labels: Any, observed: Any) -> Any:
        """The tasks' losses."""
        logits, labels, observed = (ops.cast(values, "float32") for values in (logits, labels, observed))
        logits = zero_where_masked(logits, observed)  # before the division: NaN would be in the temperature's gradient
        losses = masked_bce(logits, labels, observed)
        if self.log_temperature is not None:
            # a bound that keeps its gradient: what falls to it can rise again
            temperature = LOWEST_TEMPERATURE + ops.exp(self.log_temperature)
            losses = losses + self.infonce * masked_infonce(logits / temperature, labels, observed)
        return losses * ops.convert_to_tensor(self.weights_of_tasks, "float32")

    def compute_output_spec(self, logits: Any, labels: Any, observed: Any) -> Any:
        """[K]."""
        return keras.KerasTensor((len(self.weights_of_tasks),), "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "weights": list(self.weights_of_tasks),
            "infonce": self.infonce,
            "temperature": self.temperature,
        }
