"""Which implementation of an operation runs: the C++ one, or the one of keras.ops."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import keras

KERNELS = ("auto", "fused", "portable", "reference")

_setting: list[str | Callable[..., Any]] = ["auto"]


@contextlib.contextmanager
def use_kernels(name: str | Callable[..., Any]) -> Iterator[None]:
    """Sets the kernels of all attention, norms and GELUs that are called, or traced, inside.

    Args:
        name: str. `"fused"`: the TensorFlow operations in C++; where XLA compiles, the portable kernels all the same.
            `"portable"`: keras.ops. `"reference"`: of attention one mask over all tokens, for tests; else portable.
            `"auto"`, the setting from the start: fused where the operations are built and take the tensors, else
            portable; the log says so once. Or a function of the arguments that attention's kernels take, for those who
            look on.

    Raises:
        ValueError: on another name.
    """
    if not callable(name) and name not in KERNELS:
        raise ValueError(f"The kernels should be one of {', '.join(KERNELS)}. Received: {name}. Use auto.")
    before = _setting[0]
    _setting[0] = name
    try:
        yield
    finally:
        _setting[0] = before


def kernel_for(tensor: Any, widest: int | None = None) -> str | Callable[..., Any]:
    """The kernel that the setting gives an operation.

    Args:
        tensor: Float. One that the operation takes.
        widest: int, optional. The largest last axis that the C++ operation takes. Defaults to any.

    Returns:
        `"fused"`, `"portable"`, `"reference"`, or the function that was set.
    """
    name = _setting[0]
    if callable(name) or name in ("portable", "reference"):
        return name
    why_not = _why_not_fused(tensor, widest, name == "auto")
    _say_once(f"portable ({why_not})" if why_not else "fused")
    return "portable" if why_not else "fused"


def _why_not_fused(tensor: Any, widest: int | None, optional: bool) -> str | None:
    """Why the C++ operation is not taken; when it was demanded, only what no user can change counts."""
    if keras.backend.backend() != "tensorflow":
        return f"the backend is {keras.backend.backend()}"
    from trainer.ops import fused

    if fused.compiled_by_xla():
        return "XLA compiles"
    if not optional:
        return None
    dtype, width = keras.backend.standardize_dtype(tensor.dtype), tensor.shape[-1]
    if dtype not in ("float32", "bfloat16"):
        return f"the dtype is {dtype}"
    if widest is not None and (width is None or width > widest):
        return f"heads are {width} wide, {widest} is the widest"
    return fused.unavailable()


@functools.cache
def _say_once(what: str) -> None:
    logging.info("Kernels of attention, norms and GELU: %s", what)
