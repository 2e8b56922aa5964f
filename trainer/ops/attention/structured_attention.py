"""Attention under OneRank's pattern and its like, without a tensor of all tokens by all tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from trainer.ops.attention.attention_pattern import CAUSAL, AttentionPattern, Prefix
from trainer.ops.attention.portable_attention import portable_attention
from trainer.ops.attention.reference_attention import reference_attention
from trainer.ops.kernels import kernel_for

MAX_DEPTH = 128  # of a head, for the fused kernel


def structured_attention(
    queries: Any,
    keys: Any,
    values: Any,
    pattern: AttentionPattern = CAUSAL,
    mask: Any = None,
    prefix: Prefix | None = None,
    bias: Any = None,
) -> Any:
    """Attention of a list's tokens to a prefix and to their own groups.

    Scores are scaled by D^-0.5. Scores, softmax and sums are float32 whatever the dtype of the tensors; the portable
    kernel sums values in their own. All kernels (see `use_kernels`) give the same numbers.

    Args:
        queries: Float [B, H, Q, D], of the last Q tokens of the list; of all M where it has groups.
        keys: Float [B, H, M, D].
        values: Float [B, H, M, D].
        pattern: AttentionPattern. Which tokens attend to which. Defaults to `CAUSAL`.
        mask: Bool [B, M]. True where a token is; none attends to the others, which get zeros. Defaults to None: all.
        prefix: Prefix. Keys, values and mask of the tokens that all attend to. Defaults to None.
        bias: Float [H]. Added to the scores of a group's first token, where `pattern.reads` is `"first"`. Defaults
            to None.

    Returns:
        Float [B, H, Q, D], of the tokens that are queries.

    Raises:
        ValueError: when a bias is given that no score takes.
    """
    if bias is not None and pattern.reads != "first":
        raise ValueError(f'`bias` is for reads="first". Received: {pattern}. Leave it out.')
    # the casts: when Keras builds a model by shapes alone, all its inputs are float32
    mask = None if mask is None else ops.cast(mask, "bool")
    b, h, _, d = ops.shape(keys)
    bias = ops.zeros((h,), "float32") if bias is None else bias
    if prefix is None:
        nothing = ops.zeros((b, h, 0, d), keys.dtype)
        prefix = Prefix(nothing, nothing, ops.zeros((b, 0), "bool"))
    prefix = prefix._replace(mask=ops.cast(prefix.mask, "bool"))
    return _kernel(queries)(queries, keys, values, pattern, mask, prefix, bias)


def _kernel(queries: Any) -> Callable[..., Any]:
    name = kernel_for(queries, widest=MAX_DEPTH)
    if callable(name):
        return name
    if name == "fused":
        from trainer.ops.fused import fused_attention

        return fused_attention
    return reference_attention if name == "reference" else portable_attention
