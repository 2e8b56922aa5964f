"""One vector of one width per feature: what models that let features interact begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from trainer.layers.initializers import glorot_of_one


@keras.saving.register_keras_serializable(package="onerank")
class FieldProjection(keras.layers.Layer):
    """Projects each feature's vector to the width d, by a matrix of the feature's own.

    `FeatureEmbedding` concatenates the features of a group, whose tables have widths of their own. This layer takes the
    concatenation apart again and gives [..., F, d]. Features of one width are projected by one einsum.

    Args:
        widths: sequence of int. The width of each feature's part of the inputs, in their order: F of them.
        d: int. The width of each feature's vector in the outputs.

    Call arguments:
        inputs: Float [..., D], D the sum of the widths.

    Returns:
        Float [..., F, d].

    Raises:
        ValueError: when a width is below 1, there is none, or inputs have another width than their sum.

    Example:
    ```python
    FieldProjection(widths=[4, 1, 4], d=8)(np.ones((2, 5, 9)))  # [2, 5, 3, 8]
    ```
    """

    def __init__(self, widths: Sequence[int], d: int, **kwargs: Any):
        super().__init__(**kwargs)
        if not widths or min(widths) < 1 or d < 1:
            raise ValueError(f"`widths` and `d` should be at least 1. Received: `widths={list(widths)}`, `d={d}`.")
        self.widths = tuple(widths)
        self.d = d
        # by width, the places of its features among the F
        self._places = {width: [f for f, w in enumerate(self.widths) if w == width] for width in sorted(set(widths))}

    def build(self, input_shape: Any) -> None:
        """Creates a kernel [F_w, w, d] for the F_w features of each width w, and a bias [F, d]."""
        if input_shape[-1] != sum(self.widths):
            raise ValueError(
                f"Inputs of the width {sum(self.widths)}, the sum of `widths`, are expected. Received: {input_shape}."
            )
        self.kernels = {}
        for width, places in self._places.items():
            self.kernels[str(width)] = self.add_weight(
                shape=(len(places), width, self.d),
                initializer=glorot_of_one(width, self.d),
                name=f"kernel_{width}",
            )
        self.bias = self.add_weight(shape=(len(self.widths), self.d), initializer="zeros", name="bias")
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The projections."""
        starts = [sum(self.widths[:f]) for f in range(len(self.widths))]
        projected: list[Any] = [None] * len(self.widths)
        leading = "abcdefgh"[: len(inputs.shape) - 1]
        for width, places in self._places.items():
            parts = ops.stack([inputs[..., starts[f] : starts[f] + width] for f in places], axis=-2)  # [..., F_w, w]
            products = ops.einsum(f"{leading}xy,xyz->{leading}xz", parts, self.kernels[str(width)])  # [..., F_w, d]
            for place, f in enumerate(places):
                projected[f] = products[..., place, :]  # [..., d]
        return ops.stack(projected, axis=-2) + self.bias  # [..., F, d]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[..., F, d]."""
        return (*input_shape[:-1], len(self.widths), self.d)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "widths": list(self.widths), "d": self.d}
