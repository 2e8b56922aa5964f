"""A dense layer for lists of tokens that multiplies all of them at once, and then takes one pass over memory."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.ops.kernels import kernel_for


@keras.saving.register_keras_serializable(package="onerank")
class TokenDense(keras.layers.Dense):
    """`keras.layers.Dense` on tokens as the rows of one matrix; the same numbers.

    As it is, TensorFlow takes [B, M, d] times a kernel for B products, of which each gets a gradient of the kernel's
    size; these are then summed. A step of a Transformer takes half as long again by that. And it goes over the products
    some ten times for a bias and a GELU with their gradients, which is twice where the C++ operations are built.

    Call arguments:
        inputs: Float [..., d].

    Returns:
        Float [..., units].

    Example:
    ```python
    TokenDense(16, "gelu")(np.ones((2, 5, 8)))  # [2, 5, 16]
    ```
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The product of rows."""
        if len(inputs.shape) == 2:
            return self._products(inputs, training)
        products = self._products(ops.reshape(inputs, (-1, inputs.shape[-1])), training)
        tokens = inputs.shape[1:-1]
        known = inputs.shape[0] is None and None not in tokens and 0 not in tokens
        tokens = (-1, *tokens) if known else ops.shape(inputs)[:-1]
        return ops.reshape(products, (*tokens, self.units))

    def _products(self, rows: Any, training: bool | None) -> Any:
        if self.use_bias and self.activation is keras.activations.gelu and kernel_for(rows) == "fused":
            from trainer.ops.fused import fused_gelu

            return fused_gelu(ops.matmul(rows, self.kernel), self.bias)
        return super().call(rows, training=training)
