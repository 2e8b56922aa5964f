"""Random cases of the operations on rows, and the ways to run them."""

import keras
import numpy as np
import tensorflow as tf

from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.ops.kernels import use_kernels

TOLERANCE = {"float32": 3e-5, "bfloat16": 8e-2}  # relative to the largest value, where that is above 1


def random_case(seed, dtype="float32"):
    """A layer, an input and a gradient of the result; sizes may be odd, 1 or 0."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape).astype("float32")

    policy = "float32" if dtype == "float32" else "mixed_bfloat16"
    width = int(random.choice([1, 2, 3, 15, 16, 17, 31, 64, 100, 128, 300]))
    rows = [(0,), (1,), (2, 3), (5, 7, 2), (513,), (0, 4)][random.integers(6)]
    layer = TokenDense(width, "gelu", dtype=policy) if seed % 2 else TokenNorm(dtype=policy)
    of_input = (*rows, 5) if seed % 2 else (*rows, width)
    layer.build(of_input)
    for variable in layer.variables:
        variable.assign(variable + 0.5 * normal(*variable.shape))
    # No row's values are almost one: of these, float32 knows neither the mean nor the norm.
    alternating = np.where(np.arange(of_input[-1]) % 2, 1, -1)
    x = (0.3 * normal(*of_input) + alternating + random.choice([0, 3])) * random.choice([0.1, 1, 10])
    return layer, tf.cast(tf.constant(x, tf.float32), dtype), tf.cast(normal(*rows, width), dtype)


def run(layer, x, grad_out, kernel, way="eager"):
    """The result and the gradients, by name, as float32 arrays. A `way` is eager, graph or xla.

    The kernel `reference` is Keras's in float64: in float32 its norms of rows without variance are off by 2e-5.
    """
    if kernel == "reference":
        twin = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
        twin.build(x.shape)
        twin.set_weights(layer.get_weights())
        layer, x, grad_out = twin, tf.cast(x, "float64"), tf.cast(grad_out, "float64")

    def step(x):
        sources = [x, *(variable.value for variable in layer.trainable_variables)]
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x)
        return [out, *tape.gradient(out, sources, grad_out)]

    if way == "graph":  # all sizes but the last unknown
        spec = tf.TensorSpec([None] * (x.shape.rank - 1) + [x.shape[-1]], x.dtype)
        step = tf.function(step, input_signature=[spec])
    elif way == "xla":
        step = tf.function(step, jit_compile=True)
    with use_kernels(kernel):
        results = step(x)
    names = ["out", "x", *(variable.name for variable in layer.trainable_variables)]
    return {name: keras.ops.convert_to_numpy(tf.cast(t, tf.float32)) for name, t in zip(names, results, strict=True)}
