"""Attention under OneRank's visibility and its like, without a tensor of all tokens by all tokens."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from trainer.ops.portable_attention import portable_attention
from trainer.ops.reference_attention import reference_attention
from trainer.ops.visibility import CAUSAL, Context, Visibility

KERNELS = ("auto", "fused", "portable", "reference")

_setting: list[str | Callable[..., Any]] = ["auto"]


def structured_attention(
    queries: Any,
    keys: Any,
    values: Any,
    visibility: Visibility = CAUSAL,
    mask: Any = None,
    context: Context | None = None,
    bias: Any = None,
) -> Any:
    """Attention of a list's tokens to a context and to their own groups.

    Scores are scaled by D^-0.5. Scores, softmax and sums are float32 whatever the dtype of the tensors; the portable
    kernel sums values in their own. All kernels (see `attention_kernel`) give the same numbers.

    Args:
        queries: Float [B, H, Q, D], of the last Q tokens of the list; of all M where it has groups.
        keys: Float [B, H, M, D].
        values: Float [B, H, M, D].
        visibility: Visibility. Who reads whom. Defaults to `CAUSAL`.
        mask: Bool [B, M]. True where a token is; the others are read by nobody, and get zeros. Defaults to None: all.
        context: Context. Keys, values and mask of the tokens that all read. Defaults to None.
        bias: Float [H]. Added to the scores of a group's first token, where `visibility.reads` is `"first"`. Defaults
            to None.

    Returns:
        Float [B, H, Q, D].

    Raises:
        ValueError: when a bias is given that no score takes.
    """
    if bias is not None and visibility.reads != "first":
        raise ValueError(f'`bias` is for reads="first". Received: {visibility}. Leave it out.')
    b, h, m, d = (ops.shape(keys)[axis] for axis in range(4))
    # the casts: when Keras builds a model by shapes alone, all its inputs are float32
    mask = ops.ones((b, m), "bool") if mask is None else ops.cast(mask, "bool")
    bias = ops.zeros((h,), "float32") if bias is None else bias
    if context is None:
        nothing = ops.zeros((b, h, 0, d), keys.dtype)
        context = Context(nothing, nothing, ops.zeros((b, 0), "bool"))
    context = context._replace(mask=ops.cast(context.mask, "bool"))
    return _kernel(queries)(queries, keys, values, visibility, mask, context, bias)


@contextlib.contextmanager
def attention_kernel(name: str | Callable[..., Any]) -> Iterator[None]:
    """Sets the kernel of all structured attention that is called, or traced, inside.

    Args:
        name: str. `"fused"`: the TensorFlow operation in C++; where XLA compiles, the portable kernel all the same.
            `"portable"`: keras.ops. `"reference"`: one mask over all tokens, for tests. `"auto"`, the setting from the
            start: fused where the operation is built and takes the tensors, else portable; the log says so once. Or a
            function of the arguments that the kernels take, for those who look on.

    Raises:
        ValueError: on another name.
    """
    if not callable(name) and name not in KERNELS:
        raise ValueError(f"The attention's kernel should be one of {', '.join(KERNELS)}. Received: {name}. Use auto.")
    before = _setting[0]
    _setting[0] = name
    try:
        yield
    finally:
        _setting[0] = before


def _kernel(queries: Any) -> Callable[..., Any]:
    name = _setting[0]
    if callable(name):
        return name
    if name == "reference":
        return reference_attention
    if name == "portable":
        return portable_attention
    why_not = _why_not_fused(queries, name == "auto")
    _say_once(f"portable ({why_not})" if why_not else "fused")
    if why_not:
        return portable_attention
    from trainer.ops.fused_attention import fused_attention

    return fused_attention


def _why_not_fused(queries: Any, asked: bool) -> str | None:
    """Why the fused kernel is not taken; when it was demanded, only what no user can change counts."""
    if keras.backend.backend() != "tensorflow":
        return f"the backend is {keras.backend.backend()}"
    from trainer.ops import fused_attention

    if fused_attention.compiled_by_xla():
        return "XLA compiles"
    if not asked:
        return None
    dtype, depth = keras.backend.standardize_dtype(queries.dtype), queries.shape[-1]
    if dtype not in ("float32", "bfloat16"):
        return f"the dtype is {dtype}"
    if depth is None or depth > fused_attention.MAX_DEPTH:
        return f"heads are {depth} wide, {fused_attention.MAX_DEPTH} is the widest"
    return fused_attention.unavailable()


@functools.cache
def _say_once(what: str) -> None:
    logging.info("Structured attention: %s", what)
