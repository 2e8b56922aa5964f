"""`RankingModel`: the contract that every model keeps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from trainer.layers.feature_embedding import FeatureEmbedding
from trainer.losses.base import RankingLoss
from trainer.losses.registry import LOSSES
from transform.features.model_inputs import Column, ModelInputs
from transform.spec.model_sections import Loss

Tensors = dict[str, Any]


class RankingModel(keras.Model):
    """Base of all models: encode the user once, then score candidates against what came out.

    A subclass writes `encode_user` and `score_candidates`; calling the model is the one after the other, so training
    and both ways of serving compute the same numbers. It may write `initial_bias` and `make_loss`; their defaults fit
    most models. Two mixins say more of a model: `SetwiseScoring`, if a candidate's score depends on the other
    candidates of the request, and `RecomputableBlocks`, if gradients can trade time for memory.

    The embedding tables are made here, as `embedding`: all models share how features become vectors, and training may
    treat the tables separately.

    Args:
        inputs: ModelInputs, or its config.

    Attributes:
        full_precision_state: frozenset of str. The names of the tensors of the user state that lose too much in short
            floats: they travel to a client and back as float32 whatever `serving.cache_dtype` says.
        test_settings: tuple of dict. Small settings that the tests of the contract build the model with; at least one.
    """

    full_precision_state: frozenset[str] = frozenset()
    test_settings: tuple[dict[str, Any], ...] = ({},)

    def __init__(self, inputs: ModelInputs | dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.inputs_spec = inputs if isinstance(inputs, ModelInputs) else ModelInputs.from_config(inputs)
        self.embedding = FeatureEmbedding(self.inputs_spec, name="embedding", dtype=self.dtype_policy)

    # === What every model writes ===

    def encode_user(self, user: Tensors, sequences: dict[str, Tensors], training: bool | None = None) -> Tensors:
        """Encodes what is known of the user before the request's context and candidates are.

        Args:
            user: dict. [B] by column name.
            sequences: dict. By sequence: [B, U] by column name and a boolean `mask` [B, U]; U may be 0.
            training: bool.

        Returns:
            The user state: named tensors whose first axis is B, masks among them as booleans [B, U]. A client may keep
            it, so it must depend on the user and the sequences alone, never on the request's context or candidates.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `encode_user`.")

    def score_candidates(
        self, user_state: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> Any:
        """Scores the candidates of each request.

        Args:
            user_state: dict. What `encode_user` returned.
            context: dict. [B] by column name.
            candidates: dict. [B, N] by column name ([B, N, S] for sets) and a boolean `mask` [B, N].
            training: bool.

        Returns:
            Float32 [B, N, K]. The logits; those of padded candidates mean nothing.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `score_candidates`.")

    # === What a model may write ===

    def initial_bias(self) -> keras.Variable | None:
        """The bias [K] of the tasks' logits, which training starts at the logits of the tasks' base rates.

        Returns:
            The variable; None, the default, in a model that has none, whose logits start where its initializers put
            them.
        """
        return None

    def make_loss(self, settings: Loss) -> RankingLoss:
        """The loss that the model is trained with.

        A model whose outputs need a loss of their own writes this; its settings are then the model's, and a spec that
        names a loss is refused. An auxiliary objective needs no loss: what a layer adds by `add_loss` is minimised too.

        Args:
            settings: Loss. The spec's `model.loss`.

        Returns:
            The loss. The default is the one that the spec names.

        Raises:
            SpecError: when there is no such loss, or it does not take the settings.
        """
        return LOSSES.build(settings.name, settings.settings, "model.loss", self.inputs_spec.tasks)

    # === What all models share ===

    def call(self, batch: dict[str, dict[str, Any]], training: bool | None = None) -> Any:
        """Both stages on a batch of `user`, `sequences`, `context` and `candidates`: logits [B, N, K]."""
        user_state = self.encode_user(batch["user"], batch["sequences"], training=training)
        return self.score_candidates(user_state, batch["context"], batch["candidates"], training=training)

    def create_variables(self) -> None:
        """Creates all variables by a call on an empty request, so that they exist before any graph is traced.

        Raises:
            ValueError: when the logits or the user state do not have the shapes that the contract says.
        """
        k = len(self.inputs_spec.tasks)
        n = 3 if k != 3 else 4  # not K, so that logits of [B, K, N] are seen
        batch = empty_batch(self.inputs_spec, candidates=n)
        logits = self(batch, training=False)
        if tuple(logits.shape) != (1, n, k) or keras.backend.standardize_dtype(logits.dtype) != "float32":
            raise ValueError(
                f"Float32 logits [B, N, K], here of shape {(1, n, k)}, are expected of `{type(self).__name__}` and its "
                f"head. Received: {keras.backend.standardize_dtype(logits.dtype)} of shape {tuple(logits.shape)}."
            )
        bias = self.initial_bias()
        if bias is not None and tuple(bias.shape) != (k,):
            raise ValueError(
                f"A bias of shape {(k,)}, one number per task, is expected of `initial_bias` of "
                f"`{type(self).__name__}`. Received: shape {tuple(bias.shape)}."
            )
        for name, tensor in self.encode_user(batch["user"], batch["sequences"], training=False).items():
            is_mask = keras.backend.standardize_dtype(tensor.dtype) == "bool"
            if not len(tensor.shape) or tensor.shape[0] != 1 or (is_mask and len(tensor.shape) != 2):
                raise ValueError(
                    f"A user state of tensors [B, ...], and of masks [B, U], is expected of `encode_user` of "
                    f"`{type(self).__name__}`. Received: `{name}` of shape {tuple(tensor.shape)} for one request."
                )

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
