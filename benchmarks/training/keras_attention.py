"""OneRank on Keras's own attention: `keras.layers.MultiHeadAttention` under one dense mask, for comparison."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.models.base import Tensors
from trainer.models.onerank.model import OneRank


class KerasAttentionBlock(keras.layers.Layer):
    """`PrivateChannelBlock` without its bias for the own candidate, on the whole list [B, U + N (1 + K), d] at once."""

    def __init__(self, heads: int, ffn_ratio: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads
        self.ffn_ratio = ffn_ratio

    def build(self, tokens_shape: Any, visible_shape: Any = None) -> None:
        """Creates the layers."""
        d = tokens_shape[-1]
        self.attention_norm = TokenNorm()
        self.attention = keras.layers.MultiHeadAttention(self.heads, d // self.heads, use_bias=False)
        self.attention.build(tokens_shape, tokens_shape)
        self.ffn_norm = TokenNorm()
        self.ffn_in = TokenDense(self.ffn_ratio * d, "gelu")
        self.ffn_out = TokenDense(d)
        for layer in (self.attention_norm, self.ffn_norm, self.ffn_in):
            layer.build((None, d))
        self.ffn_out.build((None, self.ffn_ratio * d))
        self.built = True

    def take_weights(self, block: Any) -> None:
        """Copies the weights of a `PrivateChannelBlock`."""
        d, heads = block.merge.units, self.heads
        kernels = [part.reshape(d, heads, d // heads) for part in np.split(block.project.kernel.numpy(), 3, axis=1)]
        self.attention.set_weights([*kernels, block.merge.kernel.numpy().reshape(heads, d // heads, d)])
        for name in ("attention_norm", "ffn_norm", "ffn_in", "ffn_out"):
            getattr(self, name).set_weights(getattr(block, name).get_weights())

    def call(self, tokens: Any, visible: Any) -> Any:
        """The new tokens; `visible` [B, M, M] says which token attends to which."""
        normed = self.attention_norm(tokens)
        tokens = tokens + self.attention(normed, normed, attention_mask=visible)
        return tokens + self.ffn_out(self.ffn_in(self.ffn_norm(tokens)))


class KerasAttentionOneRank(OneRank):
    """A OneRank with another attention, without dropout; where candidate biases are 0 the logits are the same."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.blocks = [
            KerasAttentionBlock(self.heads, self.ffn_ratio, name=f"keras_block_{index}") for index in range(self.depth)
        ]

    @classmethod
    def of(cls, model: OneRank) -> KerasAttentionOneRank:
        """A model with the variables' values of another."""
        twin = cls.from_config(model.get_config())
        twin.create_variables()
        values = {variable.path.split("/", 1)[1]: variable for variable in model.variables}
        for variable in twin.variables:
            path = variable.path.split("/", 1)[1]
            if not path.startswith("keras_block"):
                variable.assign(values[path])
        for block, original in zip(twin.blocks, model.blocks, strict=True):
            block.take_weights(original)
        return twin

    def encode_user(self, user: Tensors, sequences: dict[str, Tensors], training: bool | None = None) -> Tensors:
        """The history's tokens as they come in: nothing more is known before candidates are."""
        embedded = self.embedding(user, group="user")
        tokens, mask = self._history_tokens(sequences, embedded)
        return {"user": embedded, "tokens": tokens, "mask": mask}

    def _candidate_states(self, cache: Tensors, candidates: Tensors, training: bool | None) -> Any:
        features = {key: value for key, value in candidates.items() if key != "mask"}
        groups = self.candidate_tokenizer(self.embedding(features, group="candidate"))
        b, n, size, d = ops.shape(groups)
        u = ops.shape(cache["tokens"])[1]
        tokens = ops.concatenate([cache["tokens"], ops.reshape(groups, (b, n * size, d))], axis=1)
        visible = _visible(cache["mask"], n, size)
        for block in self.blocks:
            tokens = block(tokens, visible)
        return self.final_norm(ops.reshape(tokens[:, u:], (b, n, size, d)))[:, :, 1:]


def _visible(mask: Any, n: Any, size: int) -> Any:
    """OneRank's visibility [B, M, M] as one mask, for a context's mask [B, U] and n groups."""
    b, u = ops.shape(mask)
    place = ops.arange(u + n * size)
    query, key = place[:, None], place[None, :]
    candidate = u + (query - u) // size * size
    of_group = ops.logical_or(key < u, ops.logical_or(key == candidate, key == query))
    read = ops.where(query < u, key <= query, of_group)
    there = ops.concatenate([mask, ops.ones((b, n * size), "bool")], axis=1)
    return ops.logical_and(read[None], there[:, None, :])
