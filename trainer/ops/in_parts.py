"""Work on a long axis part by part, so that memory is bounded by a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def split_parts(tensors: Any, longest: int) -> Any:
    """Cuts axis 1 into as few parts as there can be, of one size.

    Args:
        tensors: nested structure of tensors [B, N, ...], N at least 1.
        longest: int. The most that a part holds.

    Returns:
        The structure, [P, B, size, ...] each; zeros (False) follow the N.
    """

    def split(tensor: Any) -> Any:
        b, n, *rest = ops.shape(tensor)
        parts = -(-n // longest)
        size = -(-n // parts)
        padded = ops.concatenate([tensor, ops.zeros((b, parts * size - n, *rest), tensor.dtype)], axis=1)
        return ops.moveaxis(ops.reshape(padded, (b, parts, size, *rest)), 1, 0)

    return keras.tree.map_structure(lambda tensor: split(ops.convert_to_tensor(tensor)), tensors)


def join_parts(parts: Any) -> Any:
    """The opposite of `split_parts`, padding left where it is: a tensor [P, B, size, ...] to [B, P * size, ...]."""
    p, b, size, *rest = ops.shape(parts)
    return ops.reshape(ops.moveaxis(parts, 0, 1), (b, p * size, *rest))


def map_parts(function: Callable[..., Any], parts: Any, *shared: Any) -> Any:
    """Applies a function to one part after the other.

    `keras.ops.map` would run several at once in a TensorFlow graph, and one more in vain outside.

    Args:
        function: callable. Of what is shared and then a part, tensors [B, ...]; returns a structure of such tensors. It
            has to work for B = 0 too.
        parts: nested structure of tensors [P, B, ...].
        *shared: nested structures of tensors [B, ...].

    Returns:
        The results, [P, B, ...] each.
    """
    p, b = ops.shape(keras.tree.flatten(parts)[0])[:2]

    def part_at(place: Any) -> Any:
        return keras.tree.map_structure(lambda tensor: tensor[place], parts)

    def zeros(tensor: Any) -> Any:
        return ops.zeros((b, *ops.shape(tensor)[1:]), tensor.dtype)

    def step(_: Any, place: Any) -> tuple[Any, Any]:
        result = function(*shared, part_at(place))
        return result, result  # not all backends let the two differ

    # computes nothing, and tells the shapes that scan wants to know beforehand
    of_none = function(*keras.tree.map_structure(lambda tensor: tensor[:0], (*shared, part_at(0))))
    # over places: over parts, of a number that is not known, Keras's scan fails
    return ops.scan(step, keras.tree.map_structure(zeros, of_none), ops.arange(p))[1]
