"""The TensorFlow operations in C++: the only module of the model that is TensorFlow's.

`setup.py` builds them from `trainer/ops/cc`, for the version of TensorFlow that is there. Of attention, tiles of scores
stay in the processor's cache, forward and backward; no tensor of them exists. Norms and GELUs are one pass over memory.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.ops.attention.attention_pattern import AttentionPattern, Prefix

NAME = "libonerank_ops"
LIBRARY = Path(__file__).with_name(f"{NAME}_tf{tf.__version__}.so")
_BUILT_AGAINST = re.compile(rb"onerank built against TensorFlow ([^;]*);")


def fused_attention(
    queries: Any, keys: Any, values: Any, pattern: AttentionPattern, mask: Any, prefix: Prefix, bias: Any
) -> Any:
    """See `structured_attention`.

    Raises:
        tf.errors.InvalidArgumentError: on wrong shapes and dtypes. TensorFlow makes a ValueError of wrong shapes
            while it traces a graph.
        RuntimeError: when the operations are not there, see `unavailable`.
    """
    mask = tf.ones((tf.shape(keys)[0], tf.shape(keys)[2]), tf.bool) if mask is None else mask
    given = {"queries": queries, "keys": keys, "values": values, "prefix.keys": prefix.keys}
    given["prefix.values"] = prefix.values
    dtype = tf.convert_to_tensor(queries).dtype
    for name, tensor in given.items():
        if dtype not in (tf.float32, tf.bfloat16) or tf.convert_to_tensor(tensor).dtype != dtype:
            received = tf.convert_to_tensor(tensor).dtype.name
            raise tf.errors.InvalidArgumentError(
                None, None, f"`{name}` should be float32 or bfloat16, as `queries`. Received: {received}."
            )
    for name, tensor in {"mask": mask, "prefix.mask": prefix.mask}.items():
        if tf.convert_to_tensor(tensor).dtype != tf.bool:
            received = tf.convert_to_tensor(tensor).dtype.name
            raise tf.errors.InvalidArgumentError(None, None, f"`{name}` should be bool. Received: {received}.")
    out, _ = _library().one_rank_attention(
        queries=queries,
        keys=keys,
        values=values,
        mask=mask,
        context_keys=prefix.keys,
        context_values=prefix.values,
        context_mask=prefix.mask,
        bias=tf.cast(bias, tf.float32),
        reads=pattern.reads,
        group_size=pattern.group_size or 0,
    )
    return pattern.select_queries(out)


def fused_gelu(x: Any, bias: Any) -> Any:
    """The exact GELU of x [..., n], float32 or bfloat16, plus a bias [n]."""
    return _library().one_rank_gelu(x=x, bias=tf.cast(bias, tf.float32))


def fused_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """Layer norm over the last axis of x [..., n], float32 or bfloat16, with gamma and beta [n]."""
    return _library().one_rank_norm(
        x=x, gamma=tf.cast(gamma, tf.float32), beta=tf.cast(beta, tf.float32), epsilon=epsilon
    )


@functools.cache
def unavailable() -> str | None:
    """Why the operations can't be used here, or None."""
    if not LIBRARY.exists():
        others = ", ".join(path.name for path in sorted(LIBRARY.parent.glob(f"{NAME}_tf*.so")))
        return f"{LIBRARY.name} is not built" + (f", only {others}: install onerank again" if others else "")
    found = _BUILT_AGAINST.search(LIBRARY.read_bytes())
    version = found[1].decode() if found else "an unknown TensorFlow"
    if version != tf.__version__:
        return f"{LIBRARY.name} was built against {version}, this is TensorFlow {tf.__version__}: install onerank again"
    if tf.config.list_physical_devices("GPU"):
        return "they run on processors, and a GPU is there"
    return None


def compiled_by_xla() -> bool:
    """Whether what is traced now is to be compiled by XLA, which knows nothing of the operations."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        if context is not None and context.IsXLAContext():
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


@functools.cache
def _library() -> Any:
    why_not = unavailable()
    if why_not:
        raise RuntimeError(f"The operations in C++ can't be used: {why_not}. Use the kernels `auto` or `portable`.")
    library = tf.load_op_library(str(LIBRARY))

    @tf.RegisterGradient("OneRankAttention")
    def _attention_gradient(op: Any, grad_out: Any, _: Any) -> list[Any]:
        queries, keys, values, mask, context_keys, context_values, context_mask, bias = op.inputs
        of_queries, of_keys, of_values, of_context_keys, of_context_values, of_bias = library.one_rank_attention_grad(
            queries=queries,
            keys=keys,
            values=values,
            mask=mask,
            context_keys=context_keys,
            context_values=context_values,
            context_mask=context_mask,
            bias=bias,
            out=op.outputs[0],
            lse=op.outputs[1],
            grad_out=grad_out,
            reads=op.get_attr("reads"),
            group_size=op.get_attr("group_size"),
        )
        return [of_queries, of_keys, of_values, None, of_context_keys, of_context_values, None, of_bias]

    @tf.RegisterGradient("OneRankGelu")
    def _gelu_gradient(op: Any, grad_out: Any) -> Any:
        x, bias = op.inputs
        return library.one_rank_gelu_grad(x=x, bias=bias, grad_out=grad_out)

    @tf.RegisterGradient("OneRankNorm")
    def _norm_gradient(op: Any, grad_out: Any) -> Any:
        x, gamma, beta = op.inputs
        epsilon = op.get_attr("epsilon")
        return library.one_rank_norm_grad(x=x, gamma=gamma, beta=beta, grad_out=grad_out, epsilon=epsilon)

    return library
