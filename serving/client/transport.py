"""What a way to the server has to offer, whatever the protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

Tensors = Mapping[str, np.ndarray]  # texts as objects


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
        dtype: str. As TensorFlow writes it: `DT_FLOAT`.
        rank: int. The number of its axes.
    """

    dtype: str
    rank: int


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a signature, by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Metadata:
    """What a server says of a model: the version that answered and its signatures by name."""

    version: int
    signatures: Mapping[str, Signature]


def is_on_this_machine(address: str) -> bool:
    """Whether the address is this machine's own, which no proxy of the environment leads to."""
    return urlsplit(address).hostname in ("127.0.0.1", "::1", "localhost")


class Transport(ABC):
    """Calls of a server that speaks TF Serving's API. Safe to use from many threads at once.

    Every call raises `TransientFailure` where another attempt may help, `VersionGone` where the model or its version is
    not there, `RequestError` where the server rejects the request, and `RankingUnavailable` for all else.

    Attributes:
        address: str. For messages.
    """

    address: str

    @abstractmethod
    def metadata(self, model: str, version: int | None, label: str | None, timeout: float) -> Metadata:
        """Asks which version answers, and for its signatures.

        Args:
            model: str. The model's name.
            version: int, optional. The version to ask for. Defaults to the server's choice, the newest.
            label: str, optional. The version's label on the server, instead of its number.
            timeout: float. Seconds.
        """

    @abstractmethod
    def predict(
        self, model: str, version: int, name: str, signature: Signature, inputs: Tensors, timeout: float
    ) -> dict[str, np.ndarray]:
        """Calls a signature of one version of a model.

        Args:
            model: str. The model's name.
            version: int. No other version answers.
            name: str. The signature's name.
            signature: Signature.
            inputs: dict. All inputs of the signature, by name.
            timeout: float. Seconds.

        Returns:
            All outputs by name.
        """

    @abstractmethod
    def carries(self, dtype: str) -> bool:
        """Whether tensors of a dtype can be sent."""

    @abstractmethod
    def close(self) -> None:
        """Closes the connections."""
