"""DIN: target attention over each history, all vectors concatenated, any head behind them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.layers.token_dense import TokenDense
from trainer.models.base import Tensors
from trainer.models.din.target_attention import TargetAttention
from trainer.models.headed import HeadedModel
from trainer.models.registry import MODELS
from transform.features.model_inputs import ModelInputs


@MODELS.register("din")
@keras.saving.register_keras_serializable(package="onerank")
class DIN(HeadedModel):
    """Deep Interest Network: each candidate weighs the user's events, any multi-task head behind it.

    The user state holds the user's embedding and the projected events of each sequence.

    Args:
        inputs: ModelInputs, or its config.
        d: int. The width of events and queries. Defaults to 32.
        attention_hidden: int. The width of the attention network. Defaults to 32.
        head: dict. The head: its `name` and its settings. Defaults to a shared bottom.

    Raises:
        ValueError: when a width is below 1.

    References:
        - [Deep Interest Network](https://arxiv.org/abs/1706.06978). Ours: events and queries are projected to one
          width d, and the products of candidate and interest are features too.
    """

    test_settings = (
        {"d": 8, "attention_hidden": 6, "head": {"name": "shared_bottom", "hidden": [16, 8], "dropout": 0.1}},
    )

    def __init__(
        self,
        inputs: ModelInputs | dict[str, Any],
        d: int = 32,
        attention_hidden: int = 32,
        head: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(inputs, head, **kwargs)
        if d < 1 or attention_hidden < 1:
            raise ValueError(
                "`d` and `attention_hidden` should be at least 1. "
                f"Received: `d={d}`, `attention_hidden={attention_hidden}`. Use multiples of 8."
            )
        self.d = d
        self.attention_hidden = attention_hidden

        # === Layers ===
        names, dtype = self.inputs_spec.sequence_names, self.dtype_policy
        self.event_projections = {name: TokenDense(d, name=f"{name}_event", dtype=dtype) for name in names}
        self.query_projections = {name: TokenDense(d, name=f"{name}_query", dtype=dtype) for name in names}
        self.attentions = {
            name: TargetAttention(attention_hidden, name=f"{name}_attention", dtype=dtype) for name in names
        }
        candidate_names = {column.name for column in self.inputs_spec.group("candidate")}
        self.item_columns = {
            name: tuple(c.name for c in self.inputs_spec.group(name) if c.name in candidate_names) for name in names
        }

    # === Stages ===

    def encode_user(self, user: Tensors, sequences: dict[str, Tensors], training: bool | None = None) -> Tensors:
        """The user's embedding [B, D], and `<sequence>_events` [B, U, d] with `<sequence>_mask` [B, U]."""
        user_state = {"user": self.embedding(user, group="user")}
        for name in self.inputs_spec.sequence_names:
            events = {key: value for key, value in sequences[name].items() if key != "mask"}
            user_state[f"{name}_events"] = self.event_projections[name](self.embedding(events, group=name))
            user_state[f"{name}_mask"] = sequences[name]["mask"]
        return user_state

    def candidate_vectors(
        self, user_state: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> Any:
        """The concatenated vectors [B, N, D] of candidate, user, context, and per sequence query and interest."""
        features = {key: value for key, value in candidates.items() if key != "mask"}
        vectors = [self.embedding(features, group="candidate")]
        n = ops.shape(candidates["mask"])[1]
        request = [user_state["user"]] + ([self.embedding(context, group="context")] if context else [])
        vectors += [ops.repeat(ops.expand_dims(vector, 1), n, axis=1) for vector in request]
        for name in self.inputs_spec.sequence_names:
            columns = self.item_columns[name]
            item = {column: features[column] for column in columns}
            query = self.query_projections[name](self.embedding(item, group="candidate", names=columns))
            interest = self.attentions[name](query, user_state[f"{name}_events"], user_state[f"{name}_mask"])
            vectors += [query, interest, query * interest]
        return ops.concatenate(vectors, axis=-1)

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "d": self.d,
            "attention_hidden": self.attention_hidden,
        }
