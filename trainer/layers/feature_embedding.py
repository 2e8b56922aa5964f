"""Features to vectors: shared embedding tables and dense values, concatenated."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.layers.embedding_table import EmbeddingTable
from transform.features.model_inputs import Column, ModelInputs


@keras.saving.register_keras_serializable(package="onerank")
class FeatureEmbedding(keras.layers.Layer):
    """Embeds one group of features at a time and concatenates the vectors in the order of the columns.

    Columns that name one table share it, so that an item has one vector as a candidate and as an event. Id 0 (missing)
    has a vector of its own; sets of ids are averaged over the ids that are there.

    Args:
        inputs: ModelInputs, or its config. The columns and tables.

    Call arguments:
        features: dict. [B] or [B, M] by column name ([B, M, S] for sets of ids).
        group: str. The group the features belong to.
        names: tuple of str, optional. Only these columns. Defaults to all of the group.

    Returns:
        Float [B, D] or [B, M, D], D the sum of the columns' widths.

    Example:
    ```python
    inputs = ModelInputs((Column("candidate", "item", "id", "item", 8),), {"item": 100}, (), (Task("click"),))
    FeatureEmbedding(inputs)({"item": np.array([[3, 5, 0]])}, group="candidate")  # [1, 3, 8]
    ```
    """

    def __init__(self, inputs: ModelInputs | dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.inputs = inputs if isinstance(inputs, ModelInputs) else ModelInputs.from_config(inputs)
        self.tables = {
            column.table: EmbeddingTable(
                self.inputs.rows[column.table], column.dim, name=column.table, dtype=self.dtype_policy
            )
            for column in self.inputs.columns
            if column.table
        }

    def build(self, *_: Any) -> None:
        """Creates the tables."""
        for table in self.tables.values():
            table.build()
        self.built = True

    def call(self, features: dict[str, Any], group: str, names: tuple[str, ...] | None = None) -> Any:
        """Embeds and concatenates."""
        chosen = self.select(group, names)
        return ops.concatenate([self._embed(column, features[column.name]) for column in chosen], axis=-1)

    def penalty(self, batch: dict[str, dict[str, Any]]) -> Any:
        """Half the squares of the vectors that a request looks up, a mean over the requests.

        Rows that are not looked up are not touched: an optimizer that scales gradients would shrink rare ones to 0.
        Nor is row 0, as padding looks it up too.

        Args:
            batch: dict. What a model is called on.

        Returns:
            Float32 scalar.
        """
        total: Any = ops.zeros((), "float32")
        for column in self.inputs.columns:
            if column.table:
                groups = {"user": batch["user"], "context": batch["context"], "candidate": batch["candidates"]}
                values = (groups.get(column.group) or batch["sequences"][column.group])[column.name]
                vectors = ops.cast(self.tables[column.table](values), "float32")
                present = ops.cast(ops.not_equal(values, 0), "float32")
                total = total + 0.5 * ops.sum(ops.sum(ops.square(vectors), axis=-1) * present)
        requests = ops.sum(ops.cast(ops.any(batch["candidates"]["mask"], axis=1), "float32"))  # others are padding
        return total / ops.maximum(requests, 1.0)

    def select(self, group: str, names: tuple[str, ...] | None = None) -> list[Column]:
        """The columns of a group, all or those named."""
        return [column for column in self.inputs.group(group) if names is None or column.name in names]

    def widths(self, group: str, names: tuple[str, ...] | None = None) -> list[int]:
        """The width of each column's part of what `call` returns, for `FieldProjection`."""
        return [column.dim for column in self.select(group, names)]

    def width(self, group: str, names: tuple[str, ...] | None = None) -> int:
        """The width D of what `call` returns."""
        return sum(self.widths(group, names))

    def _embed(self, column: Column, values: Any) -> Any:
        if column.kind == "dense":
            return ops.expand_dims(ops.cast(values, self.compute_dtype), -1)
        vectors = self.tables[str(column.table)](values)
        if column.kind == "id":
            return vectors
        present = ops.expand_dims(ops.cast(ops.not_equal(values, 0), vectors.dtype), -1)
        return ops.sum(vectors * present, axis=-2) / ops.maximum(ops.sum(present, axis=-2), 1)

    def compute_output_spec(self, features: dict[str, Any], group: str, names: tuple[str, ...] | None = None) -> Any:
        """The shape follows from the first column's values."""
        first = self.select(group, names)[0]
        shape = tuple(features[first.name].shape)
        shape = shape[:-1] if first.kind == "ids" else shape
        return keras.KerasTensor((*shape, self.width(group, names)), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "inputs": self.inputs.to_config()}
