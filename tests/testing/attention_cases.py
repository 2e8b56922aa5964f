"""Random cases of structured attention, the ways to run them, and what should come out."""

import numpy as np
import tensorflow as tf

from trainer.ops.attention.attention_pattern import READS, AttentionPattern, Prefix
from trainer.ops.attention.structured_attention import structured_attention
from trainer.ops.kernels import use_kernels

TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2}  # relative to the largest value, where that is above 1


def random_case(seed, dtype="float32"):
    """Arguments of a call, and a gradient of its result, as tensors; sizes may be odd, 1 or 0."""
    random = np.random.default_rng(seed)

    def pick(*sizes):
        return int(random.choice(sizes))

    b, h, d = pick(0, 1, 2, 3, 3), pick(1, 2, 3), pick(1, 2, 5, 8, 16, 31, 32, 33, 64, 100, 128)
    u = pick(0, 0, 1, 2, 7, 47, 48, 49, 100, 230)
    reads = READS[seed % 3]
    if reads == "first" or random.random() < 0.4:
        size = pick(1, 2, 3, 4, 5, 13)
        pattern, m = AttentionPattern(reads, size, pick(0, 0, size // 2, size - 1)), size * pick(0, 1, 1, 2, 9, 16, 40)
        q = m
    else:
        pattern, m = AttentionPattern(reads), pick(0, 1, 2, 23, 24, 25, 47, 48, 49, 97, 160, 300)
        q = m if random.random() < 0.5 else int(random.integers(0, m + 1))

    def normal(*shape):
        return tf.cast(tf.constant(random.normal(size=shape), tf.float32), dtype)

    def mask(width):
        kept = random.random((b, width)) < pick(0.1, 0.6, 1, 1)
        if b:
            kept[pick(*range(b))] = random.random() < 0.5  # a row that is all there, or all padding
        return tf.constant(kept)

    arguments = {
        "queries": normal(b, h, q, d),
        "keys": normal(b, h, m, d),
        "values": normal(b, h, m, d),
        "prefix_keys": normal(b, h, u, d),
        "prefix_values": normal(b, h, u, d),
        "bias": tf.constant(random.normal(size=h), tf.float32),
        "mask": mask(m),
        "prefix_mask": mask(u),
        "grad_out": normal(b, h, q - pattern.query_offset * (m // (pattern.group_size or 1)), d),
    }
    return arguments, pattern


def run(arguments, pattern, kernel, way="eager"):
    """The result and the gradients of all inputs, by name, as float32 arrays. A `way` is eager, graph or xla."""

    def step(a):
        names = ["queries", "keys", "values", "prefix_keys", "prefix_values"]
        names += ["bias"] if pattern.reads == "first" else []
        sources = [a[name] for name in names]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            prefix = Prefix(a["prefix_keys"], a["prefix_values"], a["prefix_mask"])
            bias = a["bias"] if pattern.reads == "first" else None
            out = structured_attention(a["queries"], a["keys"], a["values"], pattern, a["mask"], prefix, bias)
        gradients = tape.gradient(out, sources, a["grad_out"], unconnected_gradients="zero")
        return {"out": out, **dict(zip(names, gradients, strict=True))}

    with use_kernels(kernel):
        if way == "graph":  # all sizes but the depth unknown
            specs = {
                name: tf.TensorSpec([None] * (tensor.shape.rank - 1) + [tensor.shape[-1]], tensor.dtype)
                if tensor.dtype.is_floating
                else tf.TensorSpec([None, None], tensor.dtype)
                for name, tensor in arguments.items()
            }
            results = tf.function(step, input_signature=[specs])(arguments)
        else:
            results = (tf.function(step, jit_compile=True) if way == "xla" else step)(arguments)
    return {name: tf.cast(tensor, tf.float32).numpy() for name, tensor in results.items()}


def naive(arguments, pattern):
    """The result in float64, query by query, from the intervals of `AttentionPattern`'s docstring."""
    a = {name: tf.cast(tensor, tf.float64).numpy() for name, tensor in arguments.items()}
    (b, h, q, d), m = a["queries"].shape, a["keys"].shape[2]
    out = np.zeros((b, h, q, d))
    for row, head, query in np.ndindex(b, h, q):
        i = m - q + query
        if not a["mask"][row, i]:
            continue
        start = i // (pattern.group_size or m) * (pattern.group_size or m)
        end = start + (pattern.group_size or m)
        own = {"first": sorted({start, i}), "before": range(start, i + 1), "all": range(start, end)}[pattern.reads]
        own = [j for j in own if a["mask"][row, j]]
        prefix = a["prefix_mask"][row] > 0
        keys = np.concatenate([a["prefix_keys"][row, head][prefix], a["keys"][row, head, own]])
        values = np.concatenate([a["prefix_values"][row, head][prefix], a["values"][row, head, own]])
        scores = keys @ a["queries"][row, head, query] / np.sqrt(d)
        if pattern.reads == "first":
            scores[prefix.sum() :] += a["bias"][head] * (np.array(own) == start)
        weights = np.exp(scores - scores.max())
        out[row, head, query] = weights / weights.sum() @ values
    size = pattern.group_size or 1
    return np.delete(out, [i for i in range(q) if i % size < pattern.query_offset], axis=2)


def difference(actual, expected):
    """The largest difference, relative to the largest value where that is above 1."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not actual.size:
        return 0.0
    return float(np.abs(actual - expected).max() / max(1, np.abs(expected).max()))
