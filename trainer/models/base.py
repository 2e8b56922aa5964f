"""`RankingModel`: the two stages that every model keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from trainer.layers.feature_embedding import FeatureEmbedding
from trainer.ops.in_parts import join_parts, map_parts, split_parts
from transform.features.model_inputs import Column, ModelInputs

Tensors = dict[str, Any]


class RankingModel(keras.Model):
    """Base of all models: encode a user's context once, then score candidates against it.

    A subclass writes `encode_context` and `score_candidates`; calling the model is the one after the other, so training
    and both ways of serving compute the same numbers. What a cache holds must depend on the user and the sequences
    alone, never on the request's context or its candidates.

    Long lists are scored part by part in two passes, with equal results: `summarize_candidates` on each part, then
    `score_summary` with the summaries of all. A model whose scores depend on the other candidates writes both; for the
    others, the second pass has nothing to do.

    The embedding tables are made here, as `embedding`: all models share how features become vectors, and training may
    treat the tables apart.

    Args:
        inputs: ModelInputs, or its config.

    Attributes:
        blocks: sequence of layers. The Transformer's blocks; empty in a model without any.
        recompute: bool. Whether gradients compute the blocks' activations again instead of keeping them: a setting of
            the training, not of the model. Defaults to False.
        exact_cache: frozenset of str. The names of the cache's tensors that lose too much in short floats.
    """

    exact_cache: frozenset[str] = frozenset()

    def __init__(self, inputs: ModelInputs | dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.blocks: Sequence[keras.layers.Layer] = ()
        self.recompute = False
        self.inputs_spec = inputs if isinstance(inputs, ModelInputs) else ModelInputs.from_config(inputs)
        self.embedding = FeatureEmbedding(self.inputs_spec, name="embedding", dtype=self.dtype_policy)

    @property
    def task_bias(self) -> keras.Variable:
        """The bias [K] of the tasks' logits; training starts it at the tasks' base rates."""
        raise TypeError(f"`{type(self).__name__}` should define `task_bias`.")

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
            Float32 [B, N, K]. The logits; those of padded candidates mean nothing.
        """
        raise TypeError(f"`{type(self).__name__}` should define `score_candidates`.")

    def summarize_candidates(
        self, cache: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> tuple[Tensors, Tensors]:
        """The first pass over a part of the candidates: all that is as costly as they are many.

        Args:
            cache: dict. What `encode_context` returned.
            context: dict. As for `score_candidates`.
            candidates: dict. As for `score_candidates`, a part of them.
            training: bool.

        Returns:
            The states: named tensors [B, N, ...], of each candidate of the part. The summary: named tensors
            [B, 1, ...], what scores need to know of the part; none where candidates don't depend on each other, as is
            the default.
        """
        return {"logits": self.score_candidates(cache, context, candidates, training=training)}, {}

    def score_summary(self, cache: Tensors, context: Tensors, summary: Tensors, states: Tensors) -> Any:
        """The second pass: scores a part of the candidates beside all others.

        Args:
            cache: dict. What `encode_context` returned.
            context: dict. As for `score_candidates`.
            summary: dict. The summaries of all parts, in any order, concatenated on axis 1: [B, P, ...].
            states: dict. Those of the part.

        Returns:
            Float [B, N, K]. The logits that `score_candidates` would give these candidates among all.
        """
        return states["logits"]

    def score_in_chunks(self, cache: Tensors, context: Tensors, candidates: Tensors, chunk: int) -> Any:
        """What `score_candidates` gives, in the memory of a chunk and of all candidates' states.

        Args:
            cache: dict. What `encode_context` returned.
            context: dict. As for `score_candidates`.
            candidates: dict. As for `score_candidates`, N at least 1.
            chunk: int. The most candidates that are worked on at once.

        Returns:
            Float [B, N, K]. The logits; those of padded candidates mean nothing.
        """
        if chunk < 1:
            raise ValueError(f"`chunk` should be at least 1. Received: `chunk={chunk}`. Use 512.")
        parts = split_parts(candidates, chunk)
        states, summaries = map_parts(self.summarize_candidates, parts, cache, context)
        summary = {name: join_parts(tensor) for name, tensor in summaries.items()}
        logits = map_parts(self.score_summary, states, cache, context, summary)
        return join_parts(logits)[:, : ops.shape(candidates["mask"])[1]]

    def call(self, batch: dict[str, dict[str, Any]], training: bool | None = None) -> Any:
        """Both stages on a batch of `user`, `sequences`, `context` and `candidates`: logits [B, N, K]."""
        cache = self.encode_context(batch["user"], batch["sequences"], training=training)
        return self.score_candidates(cache, batch["context"], batch["candidates"], training=training)

    def create_variables(self) -> None:
        """Creates all variables by a call on an empty request, so that they exist before any graph is traced."""
        self(empty_batch(self.inputs_spec), training=False)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "inputs": self.inputs_spec.to_config()}


def empty_batch(inputs: ModelInputs, candidates: int = 2, events: int = 2) -> dict[str, dict[str, Any]]:
    """One request, all values 0.

    Args:
        inputs: ModelInputs.
        candidates: int. N. Defaults to 2.
        events: int. The events in each sequence, at most its length. Defaults to 2.

    Returns:
        What a model is called on, as numpy arrays.
    """

    def zeros(column: Column, shape: tuple[int, ...]) -> np.ndarray:
        shape = (*shape, 1) if column.kind == "ids" else shape
        return np.zeros(shape, "float32" if column.kind == "dense" else "int64")

    def group(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {column.name: zeros(column, shape) for column in inputs.group(name)}

    def masked(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {**group(name, shape), "mask": np.ones(shape, "bool")}

    return {
        "user": group("user", (1,)),
        "context": group("context", (1,)),
        "sequences": {s.name: masked(s.name, (1, min(events, s.length))) for s in inputs.sequences},
        "candidates": masked("candidate", (1, candidates)),
    }
