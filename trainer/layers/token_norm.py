"""Layer norm in one pass over memory."""

from __future__ import annotations

from typing import Any

import keras

from trainer.ops.kernels import kernel_for


@keras.saving.register_keras_serializable(package="onerank")
class TokenNorm(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis; the same numbers.

    Where the C++ operations are built it is one pass over memory, and one for its gradient.

    Args:
        epsilon: float. Added to the variance. Defaults to 1e-6.
        **kwargs: what `keras.layers.LayerNormalization` takes; with another axis, or without gamma or beta, it is that.

    Call arguments:
        inputs: Float [..., d].

    Returns:
        Float [..., d].

    Example:
    ```python
    TokenNorm()(np.ones((2, 5, 8)))  # [2, 5, 8]
    ```
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, inputs: Any) -> Any:
        """The normed rows."""
        usual = self.axis in (-1, [-1]) and self.center and self.scale and not self.rms_scaling
        if not usual or kernel_for(inputs) != "fused":
            return super().call(inputs)
        from trainer.ops.fused import fused_norm

        return keras.ops.cast(fused_norm(inputs, self.gamma, self.beta, self.epsilon), self.compute_dtype)
