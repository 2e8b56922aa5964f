"""OneRank's Transformer block: context, candidates and private task channels share its weights, not their states."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.ops.attention.first_block_attention import first_block_attention, read_before_candidates
from trainer.ops.attention.structured_attention import CAUSAL, Context, Visibility, structured_attention

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

    In the first block the task tokens of all candidates are the same. Given these with the context, it computes once
    what they read of it; given that with the groups, the result is the same, for less work.

    Args:
        heads: int. H, the attention heads; divides d. Defaults to 4.
        ffn_ratio: int. The width of the feed-forward network's hidden layer over d. Defaults to 4.
        dropout: float. The share of each branch's output dropped in training. Defaults to 0.0.

    Call arguments:
        tokens: Float [B, U, d], the context, or [B, N, 1 + K, d], the groups; U may be 0.
        context_mask: Bool [B, U]. True where a context token is.
        context_keys: Float [B, H, U, d/H], optional. The context's keys; with them, tokens are groups.
        context_values: Float [B, H, U, d/H], optional. The context's values.
        task_tokens: Float [K, d], optional. Beside the context: the task tokens that all groups will have.
        task_read: Float32 [B, H, K, 2 d/H + 1], optional. Beside groups: what the block returned for these.
        tasks_only: bool. Whether the new task tokens alone are wanted of the groups, as in the last block. Defaults to
            False.
        training: bool.

    Returns:
        Of the context: the new tokens, their keys and values, and with task tokens what these read. Of groups: the new
        groups, or [B, N, K, d] if the tasks alone are wanted.

    Example:
    ```python
    block = PrivateChannelBlock(heads=2)
    mask = np.ones((2, 7), bool)
    context, keys, values = block(np.ones((2, 7, 8)), mask)
    block(np.ones((2, 5, 4, 8)), mask, keys, values)  # [2, 5, 4, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), task-conditioned information selection. Ours: pre-norm, GELU,
          no bias in the attention's projections, a learned bias a head on the score of the own candidate, and the
          candidate's token does not read its task tokens (through it a task would read the others from the second
          block on).
    """

    def __init__(self, heads: int = 4, ffn_ratio: int = 4, dropout: float = 0.0, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)  # it would round the logarithms in `task_read`
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

    def build(
        self,
        tokens_shape: Any,
        context_keys_shape: Any = None,
        context_values_shape: Any = None,
        task_tokens_shape: Any = None,
        task_read_shape: Any = None,
    ) -> None:
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
        task_tokens: Any = None,
        task_read: Any = None,
        tasks_only: bool = False,
        training: bool | None = None,
    ) -> Any:
        """The block on the context, or on groups."""
        tokens = ops.cast(tokens, self.compute_dtype)
        if context_keys is not None:
            keys, values = (ops.cast(tensor, self.compute_dtype) for tensor in (context_keys, context_values))
            context = Context(keys, values, context_mask)
            read = self._read_of_groups(tokens, context, task_read, tasks_only)
            return self._after_attention(tokens[:, :, 1:] if tasks_only else tokens, read, training)
        queries, keys, values = self._heads(tokens)
        read = structured_attention(queries, keys, values, CAUSAL, context_mask)
        new_tokens = self._after_attention(tokens, read, training)
        if task_tokens is None:
            return new_tokens, keys, values
        tasks = self._heads(ops.expand_dims(task_tokens, 0))
        return new_tokens, keys, values, read_before_candidates(tasks, Context(keys, values, context_mask))

    def _read_of_groups(self, tokens: Any, context: Context, task_read: Any, tasks_only: bool) -> Any:
        """What the tokens of groups read, [B, H, M, d/H]; M without the candidates' tokens, if they are not wanted."""
        if task_read is not None:
            candidates = self._heads(tokens[:, :, 0])
            return first_block_attention(candidates, task_read, context, self.candidate_bias, tasks_only)
        visibility = Visibility("first", tokens.shape[2], first_reader=1 if tasks_only else 0)
        queries, keys, values = self._heads(tokens)
        return structured_attention(queries, keys, values, visibility, context=context, bias=self.candidate_bias)

    def _heads(self, tokens: Any) -> list[Any]:
        """Queries, keys and values [B, H, M, d/H] of tokens [B, M, d], or of groups of them."""
        b, *of_tokens, d = ops.shape(tokens)
        projected = self.project(self.attention_norm(ops.reshape(tokens, (-1, d))))
        split = ops.reshape(projected, (b, math.prod(of_tokens), 3, self.heads, d // self.heads))
        return ops.unstack(ops.transpose(split, (2, 0, 3, 1, 4)), num=3, axis=0)

    def _after_attention(self, tokens: Any, read: Any, training: bool | None) -> Any:
        """The new tokens: both residual branches."""
        d = tokens.shape[-1]
        rows = ops.reshape(tokens, (-1, d))
        read = ops.reshape(ops.transpose(read, (0, 2, 1, 3)), (-1, d))
        rows = rows + self.drop(self.merge(read), training=training)
        rows = rows + self.drop(self.ffn_out(self.ffn_in(self.ffn_norm(rows))), training=training)
        return ops.reshape(rows, ops.shape(tokens))

    def compute_output_spec(
        self,
        tokens: Any,
        context_mask: Any,
        context_keys: Any = None,
        context_values: Any = None,
        task_tokens: Any = None,
        task_read: Any = None,
        tasks_only: bool = False,
        training: bool | None = None,
    ) -> Any:
        """Of the context [B, U, d], twice [B, H, U, d/H], and [B, H, K, 2 d/H + 1] with task tokens; else groups."""
        if context_keys is not None:
            b, n, size, d = tokens.shape
            return keras.KerasTensor((b, n, size - 1 if tasks_only else size, d), self.compute_dtype)
        b, u, d = tokens.shape
        depth = d // self.heads
        of_context = [
            keras.KerasTensor(shape, self.compute_dtype) for shape in [(b, u, d), *[(b, self.heads, u, depth)] * 2]
        ]
        if task_tokens is None:
            return tuple(of_context)
        return (*of_context, keras.KerasTensor((b, self.heads, task_tokens.shape[0], 2 * depth + 1), "float32"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads, "ffn_ratio": self.ffn_ratio, "dropout": self.dropout}
