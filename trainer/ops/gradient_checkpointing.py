"""Activations that are computed twice instead of kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops


def checkpointed(layer: keras.layers.Layer, **arguments: Any) -> Any:
    """Calls a layer of which the backward pass computes the activations again: it keeps the arguments alone.

    `keras.remat` would draw other dropout masks the second time, since random states have moved on by then. Here both
    passes draw what a plain call draws, and the states end where that leaves them.

    Args:
        layer: Layer. Built; of layers inside it, `keras.layers.Dropout` alone may be random.
        **arguments: the call's arguments, tensors or nested structures of them.

    Returns:
        What the call returns, which may be nested but holds floats only.
    """
    values = list(arguments.values())  # a list, since a dict would be flattened in another order
    leaves = keras.tree.flatten(values)
    floats = [leaf for leaf in leaves if _is_float(leaf)]
    draws = [_Draws(inner.seed_generator) for inner in layer._flatten_layers() if _is_random(inner)]

    @keras.remat
    def call(*floats: Any) -> Any:  # tensors as arguments: gradients of what a closure captures would be lost
        given = iter(floats)
        again = keras.tree.pack_sequence_as(values, [next(given) if _is_float(leaf) else leaf for leaf in leaves])
        with contextlib.ExitStack() as stack:
            for of_generator in draws:
                stack.enter_context(of_generator.from_start())
            return layer(**dict(zip(arguments, again, strict=True)))

    outputs = call(*floats)
    for of_generator in draws:
        of_generator.move_on()
    return outputs


class _Draws:
    """The seeds that a generator would give from now on, as often as they are asked for."""

    def __init__(self, generator: keras.random.SeedGenerator):
        self._generator = generator
        self._start = generator.state.value * 1
        self._count = 0

    @contextlib.contextmanager
    def from_start(self) -> Iterator[None]:
        """Inside, the generator gives the seeds from the first one on and leaves its state alone."""
        self._count = 0
        self._generator.next = self._next
        try:
            yield
        finally:
            del self._generator.next

    def move_on(self) -> None:
        """Sets the generator's state behind the seeds that were given."""
        self._generator.state.assign(self._after(self._count))

    def _next(self, ordered: bool = True) -> Any:
        self._count += 1
        return self._after(self._count - 1)

    def _after(self, count: int) -> Any:
        return self._start + ops.convert_to_tensor([0, count], self._generator.state.dtype)


def _is_random(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Dropout) and layer.rate > 0


def _is_float(value: Any) -> bool:
    return ops.is_tensor(value) and keras.backend.is_float_dtype(value.dtype)
