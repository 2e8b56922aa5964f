"""Tensors in the JSON of TF Serving's REST API."""

from __future__ import annotations

import base64
import binascii
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.server.errors import invalid
from serving.server.signature import Arrays, Signature
from serving.server.tensor_spec import TensorSpec

_JSON_TYPES: dict[str, set[type]] = {
    "f": {float, int},
    "i": {int},
    "u": {int},
    "b": {bool},
    "O": {str, dict},
    "V": {float, int},
}
_EXPECTED = {"f": "numbers", "i": "whole numbers", "u": "whole numbers", "b": "true or false", "V": "numbers"}
_WHOLE_IN_FLOAT = {"float32": 2**24 - 1, "float64": 2**53 - 1}  # above, not every whole number is one of these floats


@dataclass(frozen=True)
class JsonRequest:
    """The body of a predict request.

    Args:
        signature_name: str. "" for the default.
        rows: bool. `instances`, not `inputs`.
        value: what stands under `instances` or `inputs`.
    """

    signature_name: str
    rows: bool
    value: Any

    @classmethod
    def parse(cls, body: bytes) -> JsonRequest:
        """Reads the body of a predict request.

        Raises:
            RequestError: INVALID_ARGUMENT.
        """
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise invalid(f"body: JSON is expected. Received: {error}.") from error
        if not isinstance(content, dict):
            raise invalid(f"body: a JSON object is expected. Received: {_shown(content)}.")
        name = content.get("signature_name", "")
        if not isinstance(name, str):
            raise invalid(f"body: 'signature_name' key must be a string value. Received: {_shown(name)}.")
        given = [key for key in ("instances", "inputs") if key in content]
        if len(given) != 1:
            raise invalid(f"body: one of 'inputs' and 'instances' is expected. Received: {_shown(sorted(content))}.")
        value = content[given[0]]
        if given == ["instances"] and (not isinstance(value, list) or not value):
            raise invalid(f"instances: a list with a row or more is expected. Received: {_shown(value)}.")
        return cls(name, given == ["instances"], value)

    def arrays(self, signature: Signature) -> Arrays:
        """The inputs of a signature.

        Raises:
            RequestError: INVALID_ARGUMENT.
        """
        columns = self._columns_of_rows(signature) if self.rows else self._columns(signature)
        return {name: _to_array(columns[name], spec) for name, spec in signature.inputs.items()}

    def _columns(self, signature: Signature) -> Mapping[str, Any]:
        if isinstance(self.value, dict) and not _is_base64(self.value):
            signature.check_names(self.value)
            return self.value
        return {_only_input(signature, "inputs"): self.value}

    def _columns_of_rows(self, signature: Signature) -> Mapping[str, Any]:
        named = [isinstance(row, dict) and not _is_base64(row) for row in self.value]
        if not any(named):
            return {_only_input(signature, "instances"): self.value}
        for place, (row, is_named) in enumerate(zip(self.value, named, strict=True)):
            if not is_named:
                raise invalid(f"instances[{place}]: an object, as the others, is expected. Received: {_shown(row)}.")
            if row.keys() != signature.inputs.keys():
                try:
                    signature.check_names(row)
                except Exception as error:
                    raise invalid(f"instances[{place}]: {error}") from error
        return {name: [row[name] for row in self.value] for name in signature.inputs}


def to_json(outputs: Arrays, rows: bool) -> bytes:
    """The body of the answer to a predict request.

    Args:
        outputs: mapping of str to array.
        rows: bool. Answer with `predictions`, a row each, not with `outputs`.

    Raises:
        RequestError: INVALID_ARGUMENT, when rows are asked for of outputs that don't have as many of them.
    """
    if not rows:
        columns = {name: _to_lists(name, array) for name, array in outputs.items()}
        return _dumped({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    sizes = {name: len(array) if array.ndim else 0 for name, array in outputs.items()}
    if len(set(sizes.values())) > 1 or any(array.ndim == 0 for array in outputs.values()):
        raise invalid(f"instances: outputs have different numbers of rows: {sizes}. Use the columnar format, `inputs`.")
    columns = {name: _to_lists(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        return _dumped({"predictions": next(iter(columns.values()))})
    rows_of = zip(*columns.values(), strict=True)
    return _dumped({"predictions": [dict(zip(columns, row, strict=True)) for row in rows_of]})


def _to_array(value: Any, spec: TensorSpec) -> np.ndarray:
    dtype = spec.numpy_dtype
    nested = np.array(value, object)
    leaves = nested.ravel().tolist()
    types = set(map(type, leaves))
    if list in types:
        raise invalid(f"input `{spec.name}`: {spec}, in lists of equal length, is expected. Received: others.")
    if not types <= _JSON_TYPES[dtype.kind]:
        place = next(i for i, leaf in enumerate(leaves) if type(leaf) not in _JSON_TYPES[dtype.kind])
        hint = " Write NaN for a missing number." if leaves[place] is None and dtype.kind in "fV" else ""
        raise invalid(
            f"input `{spec.name}`{_place(place, nested.shape)}: {spec}, as {_EXPECTED.get(dtype.kind, 'strings')}, is "
            f"expected. Received: {_shown(leaves[place])}.{hint}"
        )
    spec.check_shape(nested.shape)
    convert = _strings if spec.holds_strings else _whole if dtype.kind in "iu" else _floats
    flat = np.array(leaves, bool) if dtype.kind == "b" else convert(leaves, spec, nested.shape)
    return flat.reshape(nested.shape)


def _strings(leaves: list[Any], spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    strings = np.empty(len(leaves), object)
    for place, leaf in enumerate(leaves):
        try:
            strings[place] = leaf.encode() if isinstance(leaf, str) else _from_base64(leaf)
        except (ValueError, binascii.Error) as error:
            raise invalid(
                f'input `{spec.name}`{_place(place, shape)}: a string, or {{"b64": base64}}, is expected. '
                f"Received: {_shown(leaf)}: {error}."
            ) from error
    return strings


def _whole(leaves: list[int], spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    limits = np.iinfo(spec.numpy_dtype)
    if leaves and not (limits.min <= min(leaves) and max(leaves) <= limits.max):
        place = next(i for i, leaf in enumerate(leaves) if not limits.min <= leaf <= limits.max)
        raise invalid(
            f"input `{spec.name}`{_place(place, shape)}: {spec.dtype.name} is expected. "
            f"Received: {_shown(leaves[place])}."
        )
    return np.array(leaves, spec.numpy_dtype)


def _floats(leaves: list[Any], spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    try:
        exact = np.array(leaves, np.float64)
    except OverflowError as error:
        raise invalid(f"input `{spec.name}`: {spec} is expected. Received: {error}.") from error
    with np.errstate(over="ignore"):
        values = exact.astype(spec.numpy_dtype)
    whole = np.abs(exact) > _WHOLE_IN_FLOAT.get(spec.dtype.name, np.inf)
    for place in np.flatnonzero((whole | np.isinf(values)) & np.isfinite(exact)).tolist():
        if isinstance(leaves[place], int) or np.isinf(values[place]):
            raise invalid(
                f"input `{spec.name}`{_place(place, shape)}: {_shown(leaves[place])} is not {spec.dtype.name} without "
                "loss of precision. Write a decimal, such as 1e8, that is in range."
            )
    return values


def _to_lists(name: str, array: np.ndarray) -> Any:
    if array.dtype == object:
        return _encoded(array.tolist(), name.endswith("_bytes"))
    # bfloat16 is no number of Python's.
    return (array.astype(np.float32) if array.dtype.kind == "V" else array).tolist()


def _encoded(value: Any, binary: bool) -> Any:
    if isinstance(value, list):
        return [_encoded(part, binary) for part in value]
    try:
        if not binary:
            return value.decode()
    except UnicodeDecodeError:
        pass  # no JSON string can hold it
    return {"b64": base64.b64encode(value).decode()}


def _dumped(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _only_input(signature: Signature, key: str) -> str:
    if len(signature.inputs) != 1:
        raise invalid(
            f"{key}: objects with the inputs of signature `{signature.name}` are expected, which are "
            f"{', '.join(signature.inputs)}. Received: values without names."
        )
    return next(iter(signature.inputs))


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _from_base64(value: Any) -> bytes:
    if not _is_base64(value):
        raise ValueError('no {"b64": base64}')
    return base64.b64decode(value["b64"] + "=" * (-len(value["b64"]) % 4), validate=True)


def _place(place: int, shape: tuple[int, ...]) -> str:
    return "".join(f"[{index}]" for index in np.unravel_index(place, shape)) if shape else ""


def _shown(value: Any) -> str:
    return ascii(reprlib.repr(value))[1:-1]
