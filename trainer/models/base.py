"""`RankingModel`: the two stages that every model keeps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from transform.columns import Column, ModelInputs

Tensors = dict[str, Any]


class RankingModel(keras.Model):
    """Base of all models: encode a user's context once, then score candidates against it.

    A subclass writes `encode_context` and `score_candidates`; calling the model is the one after the other, so training
    and both ways of serving compute the same numbers. What a cache holds must depend on the user and the sequences
    alone, never on the request's context or its candidates.

    Args:
        inputs: ModelInputs, or its config.
    """

    def __init__(self, inputs: ModelInputs | dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.inputs_spec = inputs if isinstance(inputs, ModelInputs) else ModelInputs.from_config(inputs)

    def encode_context(self, user: Tensors, sequences: dict[str, Tensors], training: bool | None = None) -> Tensors:
        """Encodes what is known before candidates are.

        Args:
            user: dict. [B] by column name.
            sequences: dict. By sequence: [B, U] by column name and a boolean `mask` [B, U]; U may be 0.
            training: bool.

        Returns:
            The cache: named tensors whose first axis is B.
        """
        raise TypeError(f"`{type(self).__name__}` should define `encode_context`.")

    def score_candidates(
        self, cache: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> Any:
        """Scores the candidates of each request.

        Args:
            cache: dict. What `encode_context` returned.
            context: dict. [B] by column name.
            candidates: dict. [B, N] by column name ([B, N, S] for sets) and a boolean `mask` [B, N].
            training: bool.

        Returns:
            Float [B, N, K]. The logits; those of padded candidates mean nothing.
        """
        raise TypeError(f"`{type(self).__name__}` should define `score_candidates`.")

    def call(self, batch: dict[str, dict[str, Any]], training: bool | None = None) -> Any:
        """Both stages on a batch of `user`, `sequences`, `context` and `candidates`: logits [B, N, K]."""
        cache = self.encode_context(batch["user"], batch["sequences"], training=training)
        return self.score_candidates(cache, batch["context"], batch["candidates"], training=training)

    def create_variables(self) -> None:
        """Creates all variables by a call on one empty request, so that they exist before any graph is traced."""
        self(empty_batch(self.inputs_spec), training=False)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "inputs": self.inputs_spec.to_config()}


def empty_batch(inputs: ModelInputs) -> dict[str, dict[str, Any]]:
    """One request with one candidate and one event a sequence, all values 0."""

    def zeros(column: Column, shape: tuple[int, ...]) -> np.ndarray:
        shape = (*shape, 1) if column.kind == "ids" else shape
        return np.zeros(shape, "float32" if column.kind == "dense" else "int64")

    def group(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {column.name: zeros(column, shape) for column in inputs.group(name)}

    mask = np.ones((1, 1), "bool")
    return {
        "user": group("user", (1,)),
        "context": group("context", (1,)),
        "sequences": {name: {**group(name, (1, 1)), "mask": mask} for name in inputs.sequences},
        "candidates": {**group("candidate", (1, 1)), "mask": mask},
    }
