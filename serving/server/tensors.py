"""PredictRequest to arrays, and arrays to TensorProto."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.server.errors import invalid
from serving.server.options import ServerOptions
from serving.server.signature import Arrays, Signature
from serving.server.tensor_spec import TensorSpec

_VALUES = {
    **dict.fromkeys(("float16", "bfloat16"), "half_val"),
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int_val"),
    **{name: f"{name}_val" for name in ("bool", "int64", "uint32", "uint64", "string")},
    **{"float32": "float_val", "float64": "double_val"},
}


def inputs_of(request: Any, signature: Signature, options: ServerOptions) -> Arrays:
    """The checked inputs of a PredictRequest.

    Args:
        request: PredictRequest.
        signature: Signature. The one that it asks for.
        options: ServerOptions. Has the limits.

    Returns:
        mapping of str to array.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    signature.check_names(request.inputs)
    signature.check_outputs(request.output_filter)
    inputs = {
        name: to_array(request.inputs[name], spec, options.max_request_bytes) for name, spec in signature.inputs.items()
    }
    signature.check_values(inputs, options.max_string_bytes)
    return inputs


def to_array(proto: Any, spec: TensorSpec, max_bytes: int) -> np.ndarray:
    """The array that a TensorProto holds.

    As in TensorFlow, the last of too few values is repeated; a tensor without any is rejected.

    Args:
        proto: TensorProto.
        spec: TensorSpec. What is expected.
        max_bytes: int. The largest array: a few bytes can ask for many values.

    Returns:
        array of the spec's dtype; `object`, of bytes, for strings.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    if proto.dtype != spec.dtype.as_datatype_enum:
        raise invalid(f"input `{spec.name}`: {spec} is expected. Received: {_dtype_name(proto.dtype)}.")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise invalid(f"input `{spec.name}`: a shape without unknown sizes is expected. Received: {list(shape)}.")
    spec.check_shape(shape)
    count, dtype = math.prod(shape), spec.numpy_dtype
    if count * dtype.itemsize > max_bytes:
        raise invalid(
            f"input `{spec.name}`: at most {max_bytes} bytes are expected. Received: {spec.dtype.name} {list(shape)}."
        )
    if spec.holds_strings and proto.string_val:
        missing = max(0, count - len(proto.string_val))
        received_bytes = sum(map(len, proto.string_val)) + missing * len(proto.string_val[-1])
        if received_bytes > max_bytes:  # each is copied when it is fed
            raise invalid(
                f"input `{spec.name}`: strings of at most {max_bytes} bytes together are expected. "
                f"Received: {received_bytes} bytes, as the last of {len(proto.string_val)} stands for {missing} more."
            )
    if proto.tensor_content and not spec.holds_strings:
        if len(proto.tensor_content) != count * dtype.itemsize:
            raise invalid(
                f"input `{spec.name}`: {count * dtype.itemsize} bytes of tensor_content for {spec.dtype.name} "
                f"{list(shape)} are expected. Received: {len(proto.tensor_content)} bytes."
            )
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    field = _VALUES.get(spec.dtype.name)
    received = len(getattr(proto, field)) if field else 0
    if received > count or (count and not received):
        raise invalid(
            f"input `{spec.name}`: {count} values in {field or 'tensor_content'} for shape {list(shape)} are expected. "
            f"Received: {received}."
        )
    try:
        return tf.make_ndarray(proto) if count else np.empty(shape, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(f"input `{spec.name}`: {spec} is expected. Received: {error}.") from error


def to_proto(array: np.ndarray, spec: TensorSpec) -> Any:
    """The TensorProto of an array of a signature's output."""
    proto = tensor_pb2.TensorProto(dtype=spec.dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if spec.holds_strings:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.tobytes()
    return proto


def _dtype_name(number: int) -> str:
    try:
        return tf.dtypes.as_dtype(number).name
    except (TypeError, KeyError):
        return types_pb2.DataType.Name(number) if number in types_pb2.DataType.values() else f"dtype {number}"
