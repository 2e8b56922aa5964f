"""From a request's bytes to an answer's, whichever way it came."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

import grpc
import numpy as np

from serving.server.batcher import Batcher
from serving.server.errors import RequestError
from serving.server.loaded_version import LoadedVersion
from serving.server.metrics import Asked
from serving.server.model_versions import ModelVersions
from serving.server.signature import Arrays, Signature
from serving.server.work_queue import WorkQueue

T = TypeVar("T")
Decode = Callable[[LoadedVersion], tuple[Signature, Arrays]]
Encode = Callable[[LoadedVersion, Signature, dict[str, np.ndarray]], T]


class Predictor:
    """Answers predict requests: decoding, the model and encoding run on the work queue's threads.

    Args:
        models: iterable of ModelVersions.
        work: WorkQueue.
        batcher: Batcher, optional. Joins requests. Defaults to none.
    """

    def __init__(self, models: Iterable[ModelVersions], work: WorkQueue, batcher: Batcher | None = None):
        self._models = {model.config.name: model for model in models}
        self._work = work
        self._batcher = batcher

    def model(self, name: str) -> ModelVersions:
        """The model of a name.

        Raises:
            RequestError: NOT_FOUND.
        """
        if name not in self._models:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name:.100})")
        return self._models[name]

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(model.available for model in self._models.values())

    async def predict(
        self,
        asked: Asked,
        model: str,
        number: int | None,
        label: str | None,
        decode: Decode,
        encode: Encode[T],
        deadline: float,
    ) -> T:
        """Answers a request.

        Args:
            asked: Asked. Gets the names of model and signature.
            model: str.
            number: int, optional. The version. Defaults to the newest.
            label: str, optional. The version's label.
            decode: callable. Gives the signature and its checked inputs.
            encode: callable. Makes the answer of version, signature and outputs.
            deadline: float. In seconds of `time.monotonic`.

        Returns:
            What `encode` returns.

        Raises:
            RequestError: why there is no answer.
        """
        with self.model(model).lease(number, label) as version:
            asked.model = model

            def decoded() -> tuple[Signature, Arrays]:
                signature, inputs = decode(version)
                asked.signature = signature.name
                return signature, inputs

            def answer() -> T:
                signature, inputs = decoded()
                return encode(version, signature, version.run(signature, inputs))

            if self._batcher is None:
                return await self._work.run(answer, deadline)
            signature, inputs = await self._work.run(decoded, deadline)
            outputs = await self._batcher.run(version, signature, inputs, deadline)
            return await self._work.run(lambda: encode(version, signature, outputs), deadline, bounded=False)


def chosen(outputs: dict[str, np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
    """The outputs that a filter names; all of them if it names none."""
    return {name: outputs[name] for name in names} if names else outputs
