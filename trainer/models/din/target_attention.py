"""DIN's target attention: each candidate weighs the user's events for itself."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="onerank")
class TargetAttention(keras.layers.Layer):
    """Weighs the events of a history by a small network on candidate, event and their product, and sums them.

    The weights are not normalised, so that the sum keeps the strength of the interest. The network sees
    [q, k, q - k, q * k]; its first layer is split into a part of the query, a part of the key and a part of the
    product, which is the same function (the difference is a linear mix of the first two) without a tensor of
    [B, N, U, 4 d]. Padded events have weight 0; without any event the result is 0.

    Args:
        hidden: int. The width of the network's hidden layer. Defaults to 32.

    Call arguments:
        query: Float [B, N, d]. The candidates.
        keys: Float [B, U, d]. The events; U may be 0.
        keys_mask: Bool [B, U]. True where an event is.

    Returns:
        Float [B, N, d]. The candidate's interest.

    Example:
    ```python
    attention = TargetAttention(hidden=16)
    attention(np.ones((2, 5, 8)), np.ones((2, 7, 8)), np.ones((2, 7), bool))  # [2, 5, 8]
    ```

    References:
        - [Deep Interest Network](https://arxiv.org/abs/1706.06978), section 4.3. Ours: SiLU instead of Dice.
    """

    def __init__(self, hidden: int = 32, **kwargs: Any):
        super().__init__(**kwargs)
        if hidden < 1:
            raise ValueError(f"`hidden` should be at least 1. Received: `hidden={hidden}`. Use a multiple of 8.")
        self.hidden = hidden

    def build(self, query_shape: Any, keys_shape: Any) -> None:
        """Creates the weights; all that matters is the width d."""
        d = query_shape[-1]
        self.query_kernel = self.add_weight(shape=(d, self.hidden), name="query_kernel")
        self.key_kernel = self.add_weight(shape=(d, self.hidden), name="key_kernel")
        self.product_kernel = self.add_weight(shape=(d, self.hidden), name="product_kernel")
        self.bias = self.add_weight(shape=(self.hidden,), initializer="zeros", name="bias")
        self.output_kernel = self.add_weight(shape=(self.hidden,), initializer="random_normal", name="output_kernel")
        self.built = True

    def call(self, query: Any, keys: Any, keys_mask: Any) -> Any:
        """Weighs and sums."""
        of_query = ops.expand_dims(ops.matmul(query, self.query_kernel) + self.bias, 2)
        of_key = ops.expand_dims(ops.matmul(keys, self.key_kernel), 1)
        product = ops.expand_dims(query, 2) * ops.expand_dims(keys, 1)
        # An einsum, not a matmul: TensorFlow 2.16's oneDNN kernel corrupts the heap on [B, N, U, d] x [d, h].
        of_product = ops.einsum("bnud,dh->bnuh", product, self.product_kernel)
        hidden = ops.silu(of_query + of_key + of_product)
        weights = ops.einsum("bnuh,h->bnu", hidden, self.output_kernel)
        weights = weights * ops.expand_dims(ops.cast(keys_mask, weights.dtype), 1)
        return ops.matmul(weights, keys)

    def compute_output_shape(self, query_shape: Any, keys_shape: Any) -> Any:
        """The query's."""
        return query_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "hidden": self.hidden}
