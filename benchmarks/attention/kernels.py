"""Ways to compute attention in TensorFlow, of one form: what `compare_kernels` measures and compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.attention.shapes import Shape, attention_inputs, layer_inputs, visible
from trainer.ops.attention.attention_pattern import AttentionPattern, Prefix
from trainer.ops.attention.structured_attention import structured_attention
from trainer.ops.kernels import use_kernels

Tensors = dict[str, Any]

# How many tensors of all queries by all keys are there at once, about, for the kernels that make them.
DENSE_TENSORS = {"reference": 4, "tf": 4, "tf additive": 3, "keras MHA": 4}
WITH_PROJECTIONS = ("keras MHA", "fused + projections")
KERNELS = ("fused", "portable", "portable XLA", "reference", "tf", "tf additive", *WITH_PROJECTIONS)


def build(kernel: str, shape: Shape, backward: bool) -> Callable[[], list[Any]]:
    """A function that computes the result, and with `backward` the gradients of all float inputs, in their order."""
    inputs = {name: tf.constant(array) for name, array in inputs_of(kernel, shape).items()}
    attend = _attend(kernel, shape)
    step = tf.function(lambda tensors: run(attend, tensors, backward), jit_compile=kernel == "portable XLA")
    return lambda: step(inputs)


def expected(kernel: str, shape: Shape, backward: bool, rows: Any = None) -> list[np.ndarray]:
    """The same in float64 with a dense mask, for all queries or, without gradients, for some rows."""
    inputs = {name: tf.constant(array, tf.float64) for name, array in inputs_of(kernel, shape).items()}
    mask = _additive(visible(shape, rows), tf.float64)

    def attend(queries: Any, *rest: Any) -> Any:
        return _dense(queries if rows is None else tf.gather(queries, rows, axis=2), *rest, mask)

    of_inputs = _with_projections(attend) if kernel in WITH_PROJECTIONS else _without(attend)
    return [tensor.numpy() for tensor in run(of_inputs, inputs, backward)]


def inputs_of(kernel: str, shape: Shape) -> dict[str, np.ndarray]:
    """The inputs of a kernel by name."""
    return layer_inputs(shape) if kernel in WITH_PROJECTIONS else attention_inputs(shape)


def run(attend: Callable[[Tensors], Any], tensors: Tensors, backward: bool) -> list[Any]:
    """The result of a function of the inputs, and the gradients of these."""
    sources = [tensor for name, tensor in tensors.items() if name != "grad_out"]
    if not backward:
        return [attend(tensors)]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        out = attend(tensors)
    return [out, *tape.gradient(out, sources, tensors["grad_out"], unconnected_gradients="zero")]


def _attend(kernel: str, shape: Shape) -> Callable[[Tensors], Any]:
    if kernel == "keras MHA":
        return _keras(shape)
    if kernel == "tf":
        mask = tf.constant(visible(shape))
        return _without(lambda *tensors: _masked(*tensors, mask))
    if kernel == "tf additive":
        mask = _additive(visible(shape), tf.float32)
        return _without(lambda *tensors: _dense(*tensors, mask))
    pattern = AttentionPattern(shape.reads, shape.group_size)

    def structured(queries: Any, keys: Any, values: Any, prefix_keys: Any, prefix_values: Any) -> Any:
        prefix = None
        if shape.prefix:
            prefix = Prefix(prefix_keys, prefix_values, tf.ones((shape.batch, shape.prefix), tf.bool))
        with use_kernels(kernel.split()[0]):
            return structured_attention(queries, keys, values, pattern, prefix=prefix)

    return _with_projections(structured) if kernel in WITH_PROJECTIONS else _without(structured)


def _without(attend: Callable[..., Any]) -> Callable[[Tensors], Any]:
    names = ("queries", "keys", "values", "prefix_keys", "prefix_values")
    return lambda tensors: attend(*(tensors[name] for name in names))


def _with_projections(attend: Callable[..., Any]) -> Callable[[Tensors], Any]:
    """What a multi-head attention does around its core."""

    def layer(tensors: Tensors) -> Any:
        def project(name: str, tokens: str) -> Any:
            return tf.einsum("bte,ehd->bhtd", tensors[tokens], tensors[f"{name}_kernel"])

        queries, keys, values = (project(name, "tokens") for name in ("query", "key", "value"))
        read = attend(queries, keys, values, project("key", "prefix"), project("value", "prefix"))
        return tf.einsum("bhtd,hde->bte", read, tensors["output_kernel"])

    return layer


def _additive(mask: np.ndarray, dtype: Any) -> Any:
    return tf.where(tf.constant(mask), tf.zeros((), dtype), tf.constant(-1e9, dtype))


def _masked(queries: Any, keys: Any, values: Any, prefix_keys: Any, prefix_values: Any, mask: Any) -> Any:
    """What one writes by hand, and `keras.ops.dot_product_attention` does."""
    keys, values = _joined(keys, values, prefix_keys, prefix_values)
    scores = tf.matmul(queries, keys, transpose_b=True) * queries.shape[-1] ** -0.5
    return tf.matmul(tf.nn.softmax(tf.where(mask, scores, -1e9)), values)


def _dense(queries: Any, keys: Any, values: Any, prefix_keys: Any, prefix_values: Any, mask: Any) -> Any:
    """The same with one pass over the scores less: queries are scaled, and the mask is added."""
    keys, values = _joined(keys, values, prefix_keys, prefix_values)
    scores = tf.matmul(queries * queries.shape[-1] ** -0.5, keys, transpose_b=True) + mask
    return tf.matmul(tf.nn.softmax(scores), values)


def _joined(keys: Any, values: Any, prefix_keys: Any, prefix_values: Any) -> tuple[Any, Any]:
    if not prefix_keys.shape[2]:
        return keys, values
    return tf.concat([prefix_keys, keys], axis=2), tf.concat([prefix_values, values], axis=2)


def _keras(shape: Shape) -> Callable[[Tensors], Any]:
    width = shape.heads * shape.depth
    layer = keras.layers.MultiHeadAttention(shape.heads, shape.depth, use_bias=False)
    layer.build((None, None, width), (None, None, width))
    mask = tf.constant(visible(shape))[None]
    names = [f"{name}_kernel" for name in ("query", "key", "value", "output")]

    def attend(tensors: Tensors) -> Any:
        tokens, everything = tensors["tokens"], tensors["tokens"]
        if shape.prefix:
            everything = tf.concat([tensors["prefix"], tokens], axis=1)
        weights = [(variable, tensors[name]) for variable, name in zip(layer.variables, names, strict=True)]
        with keras.StatelessScope(state_mapping=weights):
            return layer(tokens, everything, attention_mask=mask)

    return attend
