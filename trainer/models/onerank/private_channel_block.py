"""OneRank's Transformer block: history, candidates and tasks share its weights, but each task has its own channel."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.models.onerank.history_state import HistoryState
from trainer.ops.attention.first_block_attention import first_block_attention, read_before_candidates
from trainer.ops.attention.structured_attention import CAUSAL, AttentionPattern, Prefix, structured_attention

# exp(4) ~ 55: with ~55 history tokens, a task token initially puts half of its attention on its own candidate, and so
# does the candidate's token on itself. Without this bias, a candidate would start with a share of 1 / (U + 2): too
# little to tell candidates apart.
CANDIDATE_BIAS = 4.0


@keras.saving.register_keras_serializable(package="onerank")
class PrivateChannelBlock(keras.layers.Layer):
    """A Transformer block with OneRank's attention pattern, in two steps.

    `encode_history` runs the block on the user's history and keeps its keys and values. `update_candidates` runs it on
    the candidates, each a group of 1 + K tokens: the candidate's token, then its K task tokens. Calling the layer is
    one of the two: with a `state` it updates candidates, without one it encodes the history.

    A history token attends to the history up to itself; a candidate's token to the history and itself; a task token to
    the history, its own candidate's token and itself, and never to another task or another candidate. So one state of
    the history serves any candidates, and a task's output does not depend on other tasks or other candidates. Padded
    history tokens receive no attention.

    Two steps save work without changing the result. In the first block the task tokens are equal for all candidates:
    given to `encode_history`, what they attend to in the history is computed once and kept in the state. In the last
    block only the outputs of task tokens are needed, see `tasks_only`.

    Args:
        heads: int. H, the number of attention heads; it divides d. Defaults to 4.
        ffn_ratio: int. The width of the feed-forward network's hidden layer, as a multiple of d. Defaults to 4.
        dropout: float. The share of each branch's output that is dropped in training. Defaults to 0.0.

    Call arguments:
        tokens: Float [B, U, d], the history, or [B, N, 1 + K, d], the candidates' groups. U may be 0.
        history_mask: Bool [B, U]. True where there is a history token.
        state: HistoryState, optional. What `encode_history` returned. With it, the tokens are candidates' groups.
        task_tokens: Float [K, d], optional. For the history only: the task tokens that all groups will have.
        tasks_only: bool. For candidates only: whether to return the task tokens alone. Defaults to False.
        training: bool.

    Returns:
        What `encode_history` or `update_candidates` returns.

    Raises:
        ValueError: when `heads` or `ffn_ratio` is below 1, `dropout` is outside [0, 1), or `heads` does not divide d.

    Example:
    ```python
    block = PrivateChannelBlock(heads=2)
    mask = np.ones((2, 7), bool)
    history, state = block(np.ones((2, 7, 8)), mask)
    block(np.ones((2, 5, 4, 8)), mask, state)  # [2, 5, 4, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), task-conditioned information selection. Ours: pre-norm, GELU,
          no bias in the attention's projections, a learned bias per head on the score of the own candidate, and the
          candidate's token does not attend to its task tokens (through it, tasks would see each other from the second
          block on).
    """

    def __init__(self, heads: int = 4, ffn_ratio: int = 4, dropout: float = 0.0, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)  # autocast would round the logarithms in `task_read`
        if heads < 1 or ffn_ratio < 1:
            raise ValueError(
                f"`heads` and `ffn_ratio` should be at least 1. Received: `heads={heads}`, `ffn_ratio={ffn_ratio}`."
            )
        if not 0 <= dropout < 1:
            raise ValueError(
                f"`dropout` should be in [0, 1), since it is the share that is dropped. Received: `dropout={dropout}`."
            )
        self.heads = heads
        self.ffn_ratio = ffn_ratio
        self.dropout = dropout

    def build(self, tokens_shape: Any) -> None:
        """Creates the weights, which depend on the width d only."""
        d = tokens_shape[-1]
        if d % self.heads:
            raise ValueError(
                "`heads` should divide d, since each head takes an equal part of the width. "
                f"Received: `heads={self.heads}`, d = {d}."
            )
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
            autocast=False,  # around 4, bfloat16 moves in steps of 1/32
        )
        self.drop = keras.layers.Dropout(self.dropout, dtype=dtype)
        for layer in (self.attention_norm, self.project, self.merge, self.ffn_norm, self.ffn_in):
            layer.build((None, None, d))
        self.ffn_out.build((None, None, self.ffn_ratio * d))
        self.built = True

    def call(
        self,
        tokens: Any,
        history_mask: Any,
        state: HistoryState | None = None,
        task_tokens: Any = None,
        tasks_only: bool = False,
        training: bool | None = None,
    ) -> Any:
        """`update_candidates` with a state, `encode_history` without one: Keras knows one call per layer."""
        if state is None:
            return self.encode_history(tokens, history_mask, task_tokens, training)
        return self.update_candidates(tokens, history_mask, state, tasks_only, training)

    def encode_history(
        self, tokens: Any, history_mask: Any, task_tokens: Any = None, training: bool | None = None
    ) -> tuple[Any, HistoryState]:
        """Runs the block on the user's history.

        Args:
            tokens: Float [B, U, d].
            history_mask: Bool [B, U].
            task_tokens: Float [K, d]. Given in the first block, where they are equal for all candidates. Defaults to
                None: what task tokens attend to is left to `update_candidates`.
            training: bool.

        Returns:
            The new history tokens [B, U, d], and the state for `update_candidates`.
        """
        tokens = ops.cast(tokens, self.compute_dtype)  # [B, U, d]
        queries, keys, values = self._heads(tokens)  # [B, H, U, d/H] each
        read = structured_attention(queries, keys, values, CAUSAL, history_mask)  # [B, H, U, d/H]
        tokens = self._add_branches(tokens, read, training)  # [B, U, d]
        state = HistoryState(keys=keys, values=values)
        if task_tokens is not None:
            tasks = self._heads(ops.expand_dims(task_tokens, 0))  # [1, H, K, d/H] each
            history = Prefix(keys, values, history_mask)
            state["task_read"] = read_before_candidates(tasks, history)  # [B, H, K, 2 d/H + 1]
        return tokens, state

    def update_candidates(
        self,
        groups: Any,
        history_mask: Any,
        state: HistoryState,
        tasks_only: bool = False,
        training: bool | None = None,
    ) -> Any:
        """Runs the block on the candidates of requests, each a group of tokens.

        Args:
            groups: Float [B, N, 1 + K, d]. A candidate's token, then its task tokens.
            history_mask: Bool [B, U].
            state: HistoryState. Of the users of these requests.
            tasks_only: bool. Whether to return the task tokens alone. Defaults to False.
            training: bool.

        Returns:
            Float [B, N, 1 + K, d], the new groups, or [B, N, K, d] with `tasks_only`.
        """
        groups = ops.cast(groups, self.compute_dtype)  # [B, N, 1 + K, d]
        history = Prefix(
            ops.cast(state["keys"], self.compute_dtype),  # [B, H, U, d/H]
            ops.cast(state["values"], self.compute_dtype),  # [B, H, U, d/H]
            history_mask,
        )
        # M tokens attend: N (1 + K) of them, or N K with `tasks_only`.
        if "task_read" in state:
            candidates = self._heads(groups[:, :, 0])  # [B, H, N, d/H] each
            read = first_block_attention(
                candidates, state["task_read"], history, self.candidate_bias, tasks_only
            )  # [B, H, M, d/H]
        else:
            pattern = AttentionPattern("first", groups.shape[2], query_offset=1 if tasks_only else 0)
            queries, keys, values = self._heads(groups)  # [B, H, N (1 + K), d/H] each
            read = structured_attention(
                queries, keys, values, pattern, prefix=history, bias=self.candidate_bias
            )  # [B, H, M, d/H]
        updated = groups[:, :, 1:] if tasks_only else groups  # [B, N, K, d] or [B, N, 1 + K, d]
        return self._add_branches(updated, read, training)  # [B, N, K, d] or [B, N, 1 + K, d]

    def _heads(self, tokens: Any) -> list[Any]:
        """Queries, keys and values [B, H, M, d/H] of M tokens, which come as [B, M, d] or as groups of them."""
        b, *token_axes, d = ops.shape(tokens)
        m = math.prod(token_axes)
        rows = ops.reshape(tokens, (-1, d))  # [B M, d]
        projected = self.project(self.attention_norm(rows))  # [B M, 3 d]
        split = ops.reshape(projected, (b, m, 3, self.heads, d // self.heads))  # [B, M, 3, H, d/H]
        return ops.unstack(ops.transpose(split, (2, 0, 3, 1, 4)), num=3, axis=0)  # [B, H, M, d/H] each

    def _add_branches(self, tokens: Any, read: Any, training: bool | None) -> Any:
        """The new tokens: adds the two residual branches, the attention's output `read` [B, H, M, d/H] and the FFN."""
        d = tokens.shape[-1]
        rows = ops.reshape(tokens, (-1, d))  # [B M, d]
        read = ops.reshape(ops.transpose(read, (0, 2, 1, 3)), (-1, d))  # [B M, d]
        rows = rows + self.drop(self.merge(read), training=training)  # [B M, d]
        rows = rows + self.drop(self.ffn_out(self.ffn_in(self.ffn_norm(rows))), training=training)  # [B M, d]
        return ops.reshape(rows, ops.shape(tokens))  # the shape of `tokens`

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "heads": self.heads, "ffn_ratio": self.ffn_ratio, "dropout": self.dropout}
