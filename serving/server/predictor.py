"""From a request's bytes to an answer's, whichever way it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from serving.server.batcher import Batcher
from serving.server.errors import RequestError
from serving.server.loaded_version import LoadedVersion
from serving.server.metrics import RequestLabels
from serving.server.model_ref import ModelRef
from serving.server.model_versions import ModelVersions
from serving.server.signature import Arrays, Signature
from serving.server.work_queue import WorkQueue

Decode = Callable[[LoadedVersion], tuple[Signature, Arrays]]
Encode = Callable[[LoadedVersion, Signature, Arrays], bytes]


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

    @contextmanager
    def lease(self, target: ModelRef) -> Iterator[LoadedVersion]:
        """The version that answers a request, which stays loaded meanwhile.

        Raises:
            RequestError: NOT_FOUND, INVALID_ARGUMENT for an unknown label, UNAVAILABLE while the model is being loaded.
        """
        if target.model not in self._models:
            raise RequestError(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({target.model:.100})"
            )
        with self._models[target.model].lease(target.number, target.label) as version:
            yield version

    def statuses(self, target: ModelRef) -> list[Any]:
        """What became of a model's versions, as ModelVersionStatus, the newest first.

        Raises:
            RequestError: NOT_FOUND, or INVALID_ARGUMENT for an unknown label.
        """
        if target.model not in self._models:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {target.model:.100}")
        model = self._models[target.model]
        return model.statuses(target.number if target.label is None else model.number_of(target.label))

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(model.available for model in self._models.values())

    async def predict(
        self, asked: RequestLabels, target: ModelRef, decode: Decode, encode: Encode, deadline: float
    ) -> bytes:
        """Answers a request.

        Args:
            asked: RequestLabels. Gets the names of model and signature.
            target: ModelRef.
            decode: callable. Gives the signature and its checked inputs.
            encode: callable. Makes the answer of version, signature and outputs.
            deadline: float. In seconds of `time.monotonic`.

        Returns:
            bytes. The answer.

        Raises:
            RequestError: why there is none.
        """
        with self.lease(target) as version:
            asked.model = target.model

            def decoded() -> tuple[Signature, Arrays]:
                signature, inputs = decode(version)
                asked.signature = signature.name
                return signature, inputs

            def answer() -> bytes:
                signature, inputs = decoded()
                return encode(version, signature, version.run(signature, inputs))

            if self._batcher is None:
                return await self._work.run(answer, deadline)
            signature, inputs = await self._work.run(decoded, deadline)
            outputs = await self._batcher.run(version, signature, inputs, deadline)
            return await self._work.run(lambda: encode(version, signature, outputs), deadline, bounded=False)
