"""OneRank's Transformer block: context, candidates and private task channels share its weights, not their states."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.ops.structured_attention import CAUSAL, Context, Visibility, structured_attention

# e^4 = 55: beside as many context tokens, a task token gives its candidate half of its attention at first, and the
# candidate's token gives it to itself. Without, the candidate starts with one part in U + 2, and what tells candidates
# apart is drowned in what they have in common.
CANDIDATE_BIAS = 4.0


@keras.saving.register_keras_serializable(package="onerank")
class PrivateChannelBlock(keras.layers.Layer):
    """A Transformer block under OneRank's visibility.

    Called on the context, it returns the new context tokens and their keys and values. Called with these on the
    groups of the candidates (a candidate's token, then its K task tokens), it returns the new groups. A context token
    reads the context before it; a candidate's token the context; a task token the context, its candidate and itself,
    never another task's token or another candidate. So the context's states hold for any candidates, and what a task
    token becomes holds for any other candidates and tasks.

    Args:
        heads: int. H, the attention heads; divides d. Defaults to 4.
        ffn_ratio: int. The width of the feed-forward network's hidden layer over d. Defaults to 4.
        dropout: float. The share of each branch's output dropped in training. Defaults to 0.0.

    Call arguments:
        tokens: Float [B, U, d], the context, or [B, N, 1 + K, d], the groups; U may be 0.
        context_mask: Bool [B, U]. True where a context token is.
        context_keys: Float [B, H, U, d/H], optional. The context's keys; with them, tokens are groups.
        context_values: Float [B, H, U, d/H], optional. The context's values.
        training: bool.

    Returns:
        The new tokens, the context's keys and its values (those given, if they were).

    Example:
    ```python
    block = PrivateChannelBlock(heads=2)
    mask = np.ones((2, 7), bool)
    context, keys, values = block(np.ones((2, 7, 8)), mask)
    block(np.ones((2, 5, 4, 8)), mask, keys, values)[0]  # [2, 5, 4, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), task-conditioned information selection. Ours: pre-norm, GELU,
          no bias in the attention's projections, a learned bias a head on the score of the own candidate, and the
          candidate's token does not read its task tokens (through it a task would read the others from the second
          block on).
    """

    def __init__(self, heads: int = 4, ffn_ratio: int = 4, dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        if heads < 1 or ffn_ratio < 1:
            raise ValueError(
                "`heads` and `ffn_ratio` should be at least 1. "
                f"Received: `heads={heads}`, `ffn_ratio={ffn_ratio}`. Use 4 and 4."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` should be in [0, 1). Received: `dropout={dropout}`. Use 0.1.")
        self.heads = heads
        self.ffn_ratio = ffn_ratio
        self.dropout = dropout

    def build(self, tokens_shape: Any, context_keys_shape: Any = None, context_values_shape: Any = None) -> None:
        """Creates the weights; all that matters is the width d."""
        d = tokens_shape[-1]
        if d % self.heads:
            raise ValueError(f"`heads` should divide d. Received: `heads={self.heads}`, d = {d}. Use 4 heads and d 64.")
        dtype = self.dtype_policy
        self.attention_norm = TokenNorm(dtype=dtype, name="attention_norm")
        self.project = TokenDense(3 * d, use_bias=False, dtype=dtype, name="query_key_value")
        self.merge = TokenDense(d, use_bias=False, dtype=dtype, name="merge_heads")
        self.ffn_norm = TokenNorm(dtype=dtype, name="ffn_norm")
        self.ffn_in = TokenDense(self.ffn_ratio * d, "gelu", dtype=dtype, name="ffn_in")
        self.ffn_out = TokenDense(d, dtype=dtype, name="ffn_out")
        self.candidate_bias = self.add_weight(
            shape=(self.heads,),
            initializer=keras.initializers.Constant(CANDIDATE_BIAS),
            name="candidate_bias",
            autocast=False,  # around 4, bfloat16 has steps of 1/32
        )
        self.drop = keras.layers.Dropout(self.dropout, dtype=dtype)
        for layer in (self.attention_norm, self.project, self.merge, self.ffn_norm, self.ffn_in):
            layer.build((None, None, d))
        self.ffn_out.build((None, None, self.ffn_ratio * d))
        self.built = True

    def call(
        self,
        tokens: Any,
        context_mask: Any,
        context_keys: Any = None,
        context_values: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, Any, Any]:
        """The block on the context, or on groups."""
        shape = ops.shape(tokens)
        flat = tokens if context_keys is None else ops.reshape(tokens, (shape[0], shape[1] * shape[2], shape[3]))
        queries, keys, values = self._heads(self.project(self.attention_norm(flat)))
        if context_keys is None:
            context_keys, context_values = keys, values
            read = structured_attention(queries, keys, values, CAUSAL, context_mask)
        else:
            context = Context(context_keys, context_values, context_mask)
            groups = Visibility("first", tokens.shape[2])
            read = structured_attention(queries, keys, values, groups, context=context, bias=self.candidate_bias)
        read = ops.reshape(ops.transpose(read, (0, 2, 1, 3)), ops.shape(flat))
        flat = flat + self.drop(self.merge(read), training=training)
        flat = flat + self.drop(self.ffn_out(self.ffn_in(self.ffn_norm(flat))), training=training)
        return ops.reshape(flat, shape), context_keys, context_values

    def _heads(self, projected: Any) -> list[Any]:
        """[B, M, 3 d] to queries, keys and values [B, H, M, d/H]."""
        b, m, width = ops.shape(projected)
        split = ops.reshape(projected, (b, m, 3, self.heads, width // (3 * self.heads)))
        return ops.unstack(ops.transpose(split, (2, 0, 3, 1, 4)), num=3, axis=0)

    def compute_output_shape(
        self, tokens_shape: Any, context_keys_shape: Any = None, context_values_shape: Any = None
    ) -> Any:
        """The tokens' shape, and twice [B, H, U, d/H]."""
        if context_keys_shape is None:
            b, u, d = tokens_shape
            context_keys_shape = (b, self.heads, u, d // self.heads)
        return tuple(tokens_shape), tuple(context_keys_shape), tuple(context_keys_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads, "ffn_ratio": self.ffn_ratio, "dropout": self.dropout}
