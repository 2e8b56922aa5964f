"""A signature of a model, and what its inputs must be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.server.errors import invalid
from serving.server.tensor_spec import TensorSpec

_METHODS = {f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress")}

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Signature:
    """A signature of a model.

    Args:
        name: str.
        inputs: mapping of str to TensorSpec.
        outputs: mapping of str to TensorSpec.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, name: str, definition: Any) -> Signature | None:
        """What a SignatureDef describes; None for those that are not for requests."""
        tensors = [*definition.inputs.values(), *definition.outputs.values()]
        if definition.method_name not in _METHODS or any(info.WhichOneof("encoding") != "name" for info in tensors):
            return None
        inputs, outputs = (
            {key: TensorSpec.of(key, info) for key, info in sorted(side.items())}
            for side in (definition.inputs, definition.outputs)
        )
        return cls(name, inputs, outputs)

    @property
    def batchable(self) -> bool:
        """Whether requests can be joined: no input fixes its first axis."""
        shapes = [spec.shape for spec in self.inputs.values()]
        return all(shape is not None and len(shape) > 0 and shape[0] is None for shape in shapes)

    def check_names(self, names: Collection[str]) -> None:
        """Rejects a request that leaves out an input or brings an unknown one.

        Raises:
            RequestError: INVALID_ARGUMENT.
        """
        missing, unknown = sorted(self.inputs.keys() - set(names)), sorted(set(names) - self.inputs.keys())
        if missing or unknown:
            told = [f"missing: {_listed(missing)}"] * bool(missing) + [f"unknown: {_listed(unknown)}"] * bool(unknown)
            hint = "" if len(unknown) < len(names) else " Give the signature's name, if another one is meant."
            raise invalid(
                f"inputs of signature `{self.name}`: {'; '.join(told)}.{hint} Expected are {_listed(self.inputs)}."
            )

    def check_outputs(self, names: Collection[str]) -> None:
        """Refuses a filter of outputs that the signature lacks, or that names one twice.

        Raises:
            RequestError: INVALID_ARGUMENT.
        """
        unknown = sorted(set(names) - self.outputs.keys())
        if unknown or len(set(names)) < len(names):
            problem = f"unknown: {_listed(unknown)}" if unknown else "one of them twice"
            raise invalid(f"output_filter of signature `{self.name}`: {_listed(self.outputs)} are expected. {problem}.")

    def check_values(self, inputs: Arrays, max_string_bytes: int) -> None:
        """Refuses strings that are too long, and requests whose inputs disagree about their number of rows.

        Args:
            inputs: mapping of str to array. Of the dtypes and shapes of the signature.
            max_string_bytes: int. The longest string.

        Raises:
            RequestError: INVALID_ARGUMENT.
        """
        rows: dict[int, str] = {}
        for name, spec in self.inputs.items():
            if spec.holds_strings and inputs[name].size:
                longest = max(map(len, inputs[name].ravel().tolist()))
                if longest > max_string_bytes:
                    raise invalid(
                        f"input `{name}`: strings of at most {max_string_bytes} bytes are expected. "
                        f"Received: {longest} bytes."
                    )
            if spec.shape and spec.shape[0] is None:
                rows.setdefault(len(inputs[name]), name)
        if len(rows) > 1:
            (first, one), (second, other), *_ = rows.items()
            raise invalid(
                f"inputs `{one}` and `{other}`: as many rows in both are expected. Received: {first} and {second}."
            )


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"`{name:.60}`" for name in list(names)[:40])
