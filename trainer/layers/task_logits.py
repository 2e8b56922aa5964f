"""One logit per task from one vector per task."""

from __future__ import annotations

import string
from typing import Any

import keras
from keras import ops

from trainer.layers.initializers import glorot_of_one


@keras.saving.register_keras_serializable(package="onerank")
class TaskLogits(keras.layers.Layer):
    """A product with a vector per task, and a bias per task; in float32 whatever the dtype policy.

    A bfloat16 logit would move in steps of 1/64 at a base rate of 5 %.

    Call arguments:
        inputs: Float [..., K, D].

    Returns:
        Float32 [..., K]. The logits.

    Example:
    ```python
    TaskLogits()(np.ones((2, 5, 3, 16)))  # [2, 5, 3]
    ```
    """

    def build(self, input_shape: Any) -> None:
        """Creates the kernel [K, D] and the bias [K]."""
        tasks, width = input_shape[-2:]
        self.kernel = self.add_weight(
            shape=(tasks, width),
            initializer=glorot_of_one(width, width),
            name="kernel",
            autocast=False,
        )
        self.bias = self.add_weight(shape=(tasks,), initializer="zeros", name="bias", autocast=False)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The logits."""
        leading = string.ascii_lowercase[: len(inputs.shape) - 2]
        products = ops.einsum(f"{leading}xy,xy->{leading}x", ops.cast(inputs, "float32"), self.kernel)  # [..., K]
        return products + self.bias  # [..., K]

    def compute_output_spec(self, inputs: Any) -> Any:
        """[..., K]."""
        return keras.KerasTensor(inputs.shape[:-1], "float32")
