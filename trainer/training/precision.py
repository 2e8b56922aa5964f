"""What a model computes in, apart from what its variables are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def autocast(model: keras.Model, precision: str) -> Iterator[None]:
    """Gives all layers of a model a dtype policy of Keras; what is called, or traced, inside computes by it.

    Variables are not touched, so one model trains in `mixed_bfloat16` and is measured and served in float32.

    Args:
        model: Model. With its variables created, as float32.
        precision: str. `"float32"` or `"mixed_bfloat16"`.
    """
    layers = model._flatten_layers()
    before = {layer: layer.dtype_policy for layer in layers}
    for layer in before:
        layer.dtype_policy = precision
    try:
        yield
    finally:
        for layer, policy in before.items():
            layer.dtype_policy = policy
