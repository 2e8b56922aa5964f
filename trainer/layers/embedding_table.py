"""An embedding table of which only the rows are read that are looked up."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="onerank")
class EmbeddingTable(keras.layers.Embedding):
    """`keras.layers.Embedding`; the same numbers.

    As it is, TensorFlow reads a whole variable before it looks rows up: where an optimizer writes single rows, each
    reading is a copy of the table.

    Call arguments:
        inputs: Int, of any shape.

    Returns:
        Float [..., output_dim].

    Example:
    ```python
    EmbeddingTable(100, 8)(np.array([[3, 5, 0]]))  # [1, 3, 8]
    ```
    """

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Not to be cast where precision is mixed: what is cast is the rows that were looked up, not the table."""
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def call(self, inputs: Any) -> Any:
        """The rows."""
        table: Any = self.embeddings.value
        if not hasattr(table, "sparse_read"):  # no variable of TensorFlow's
            return super().call(inputs)
        return ops.cast(table.sparse_read(ops.cast(inputs, "int32")), self.compute_dtype)
