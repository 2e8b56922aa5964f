"""A named tensor of a signature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from serving.server.errors import invalid


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a signature.

    Args:
        name: str. As in requests.
        tensor: str. Its name in the graph.
        dtype: tf.DType.
        shape: tuple of int or None, optional. None for an axis of any size, no tuple for any shape.
    """

    name: str
    tensor: str
    dtype: tf.DType
    shape: tuple[int | None, ...] | None

    @classmethod
    def of(cls, name: str, info: Any) -> TensorSpec:
        """The tensor that a TensorInfo describes."""
        sizes = tuple(dim.size if dim.size >= 0 else None for dim in info.tensor_shape.dim)
        shape = None if info.tensor_shape.unknown_rank else sizes
        return cls(name, info.name, tf.dtypes.as_dtype(info.dtype), shape)

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype of arrays that hold it; `object`, of bytes, for strings."""
        return np.dtype(self.dtype.as_numpy_dtype)

    @property
    def holds_strings(self) -> bool:
        """Whether its values are strings."""
        return self.dtype is tf.string

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses a tensor of another rank, or with another size where the signature fixes one.

        Raises:
            RequestError: INVALID_ARGUMENT.
        """
        if self.shape is None:
            return
        fits = len(shape) == len(self.shape) and all(
            size in (None, received) for size, received in zip(self.shape, shape, strict=True)
        )
        if not fits:
            raise invalid(f"input `{self.name}`: {self} is expected. Received: shape {list(shape)}.")

    def __str__(self) -> str:
        """Such as `float32 [?, 3]`."""
        if self.shape is None:
            return f"{self.dtype.name} of any shape"
        return f"{self.dtype.name} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"
