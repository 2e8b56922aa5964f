"""Several dense layers of one shape as one variable and one product: experts, towers, what each task has of its own."""

from __future__ import annotations

import string
from typing import Any

import keras
from keras import ops

from trainer.layers.initializers import glorot_of_one


@keras.saving.register_keras_serializable(package="onerank")
class StackedDense(keras.layers.Layer):
    """`stack` dense layers in one einsum, never a loop.

    The kernels start within the glorot limits of one of the matrices: those of the stack as a whole would be smaller.

    Args:
        stack: int. S, the number of layers.
        units: int. The width of each layer's output.
        activation: str, optional. The name of an activation. Defaults to None.
        use_bias: bool. Whether each layer has a bias. Defaults to True.
        stacked_inputs: bool. Whether each layer has inputs of its own, [..., S, D]; else all have the same, [..., D].
            Defaults to False.

    Call arguments:
        inputs: Float [..., D], or [..., S, D] with `stacked_inputs`.

    Returns:
        Float [..., S, units].

    Raises:
        ValueError: when `stack` or `units` is below 1, or inputs have another stack.

    Example:
    ```python
    experts = StackedDense(4, 16, "relu")
    towers = StackedDense(4, 8, stacked_inputs=True)
    towers(experts(np.ones((2, 5, 32))))  # [2, 5, 4, 8]
    ```
    """

    def __init__(
        self,
        stack: int,
        units: int,
        activation: str | None = None,
        use_bias: bool = True,
        stacked_inputs: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if stack < 1 or units < 1:
            raise ValueError(f"`stack` and `units` should be at least 1. Received: `stack={stack}`, `units={units}`.")
        self.stack = stack
        self.units = units
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.stacked_inputs = stacked_inputs

    def build(self, input_shape: Any) -> None:
        """Creates the kernels [S, D, units] as one variable, and the biases [S, units]."""
        if self.stacked_inputs and input_shape[-2] != self.stack:
            raise ValueError(
                f"Inputs [..., {self.stack}, D] are expected, one vector per layer. Received: shape {input_shape}."
            )
        width = input_shape[-1]
        self.kernel = self.add_weight(
            shape=(self.stack, width, self.units),
            initializer=glorot_of_one(width, self.units),
            name="kernel",
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.stack, self.units), initializer="zeros", name="bias")
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The products of all layers."""
        leading = string.ascii_lowercase[: len(inputs.shape) - (2 if self.stacked_inputs else 1)]
        stack = "x" if self.stacked_inputs else ""
        outputs = ops.einsum(f"{leading}{stack}y,xyz->{leading}xz", inputs, self.kernel)  # [..., S, units]
        if self.bias is not None:
            outputs = outputs + self.bias  # [..., S, units]
        return self.activation(outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[..., S, units]."""
        leading = input_shape[:-2] if self.stacked_inputs else input_shape[:-1]
        return (*leading, self.stack, self.units)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "stack": self.stack,
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "stacked_inputs": self.stacked_inputs,
        }
