"""Joining requests into one call."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.server.batching_parameters import BatchingParameters
from serving.server.errors import RequestError, invalid
from serving.server.loaded_version import LoadedVersion
from serving.server.metrics import Metrics
from serving.server.signature import Arrays, Signature
from serving.server.work_queue import NO_DEADLINE, WorkQueue, late


@dataclass(eq=False)
class _Batch:
    version: LoadedVersion
    signature: Signature
    requests: list[tuple[Arrays, int, float, asyncio.Future]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(rows for _, rows, _, _ in self.requests)


class Batcher:
    """Joins requests to one signature of one version along their first axis.

    Requests wait for others up to a timeout or until the batch is full. Each gets its own rows of the outputs. Where
    lists are padded, behind and with their tensor's first value, a request's outputs are as long as the longest of its
    batch, as in TF Serving. If a batch is rejected, its requests are tried one by one.

    Args:
        work: WorkQueue.
        parameters: BatchingParameters.
        metrics: Metrics.
        most_waiting: int. Requests that may wait for others.
        max_bytes: int. The largest tensor that requests are joined to.
    """

    def __init__(
        self, work: WorkQueue, parameters: BatchingParameters, metrics: Metrics, most_waiting: int, max_bytes: int
    ):
        self._work = work
        self._parameters = parameters
        self._metrics = metrics
        self._most_waiting = most_waiting
        self._max_bytes = max_bytes
        self._open: dict[tuple, _Batch] = {}
        self._waiting = 0
        self._tasks: set[asyncio.Task] = set()

    async def run(
        self, version: LoadedVersion, signature: Signature, inputs: Arrays, deadline: float
    ) -> dict[str, np.ndarray]:
        """The outputs of a request, which is joined with others where that is possible.

        Raises:
            RequestError: what TensorFlow says; INVALID_ARGUMENT for more rows than a batch may have;
                RESOURCE_EXHAUSTED; DEADLINE_EXCEEDED.
        """
        rows, most = len(next(iter(inputs.values()))) if signature.batchable else 0, self._parameters.max_batch_size
        if rows > most:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {most}")  # as in TF Serving
        if rows in (0, most):
            return await self._work.run(lambda: version.run(signature, inputs), deadline, bounded=False)
        if self._waiting >= self._most_waiting:
            raise RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._waiting} requests wait already.")
        pads = self._parameters.pad_variable_length_inputs
        key = (version, signature.name, () if pads else tuple(array.shape[1:] for array in inputs.values()))
        if key in self._open and self._open[key].rows + rows > most:
            self._close(key)
        loop = asyncio.get_running_loop()
        if key not in self._open:
            self._open[key] = batch = _Batch(version, signature)
            loop.call_later(self._parameters.batch_timeout_micros / 1e6, self._close, key, batch)
        answer: asyncio.Future = loop.create_future()
        self._open[key].requests.append((inputs, rows, deadline, answer))
        if self._open[key].rows >= most:
            self._close(key)
        self._waiting += 1
        try:
            return await asyncio.wait_for(answer, None if deadline == NO_DEADLINE else deadline - time.monotonic())
        except asyncio.TimeoutError as error:
            raise late() from error
        finally:
            self._waiting -= 1

    def _close(self, key: tuple, batch: _Batch | None = None) -> None:
        if key in self._open and (batch is None or batch is self._open[key]):
            task = asyncio.create_task(self._answer(self._open.pop(key)))
            self._tasks.add(task)  # the loop itself would let go of it
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, batch: _Batch) -> None:
        batch.requests = [request for request in batch.requests if not request[-1].done()]  # clients may give up
        if not batch.requests:
            return
        self._metrics.batch_rows.observe(batch.rows)
        try:
            deadline = max(deadline for _, _, deadline, _ in batch.requests)
            outputs = await self._work.run(lambda: self._run(batch), deadline, bounded=False)
        except Exception as error:
            for inputs, _, deadline, answer in batch.requests:
                if not answer.done():
                    await self._alone(batch, inputs, deadline, answer, error)
            return
        for (_, _, _, answer), output in zip(batch.requests, outputs, strict=True):
            if not answer.done():
                answer.set_result(output)

    async def _alone(
        self, batch: _Batch, inputs: Arrays, deadline: float, answer: asyncio.Future, error: Exception
    ) -> None:
        """Tries one request of a batch that was rejected: the fault may be another's."""
        try:
            if len(batch.requests) == 1 or not _is_invalid(error):
                raise error
            work = self._work.run(lambda: batch.version.run(batch.signature, inputs), deadline, bounded=False)
            result = await work
            if not answer.done():
                answer.set_result(result)
        except Exception as own:
            if not answer.done():
                answer.set_exception(own)

    def _run(self, batch: _Batch) -> list[dict[str, np.ndarray]]:
        joined = {
            name: _joined([inputs[name] for inputs, *_ in batch.requests], self._max_bytes)
            for name in batch.signature.inputs
        }
        outputs = batch.version.run(batch.signature, joined)
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != batch.rows:
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"output `{name}` of signature `{batch.signature.name}`: a row for each of the inputs' is expected "
                    f"where requests are joined. Received: shape {list(array.shape)} for {batch.rows} rows.",
                )
        ends = np.cumsum([rows for _, rows, _, _ in batch.requests])
        return [
            {name: array[end - rows : end] for name, array in outputs.items()}
            for (_, rows, _, _), end in zip(batch.requests, ends, strict=True)
        ]


def _is_invalid(error: Exception) -> bool:
    return isinstance(error, RequestError) and error.code == grpc.StatusCode.INVALID_ARGUMENT


def _joined(arrays: list[np.ndarray], max_bytes: int) -> np.ndarray:
    """The arrays below each other, each padded behind, with its own first value, to the longest of each other axis."""
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    shape = (sum(map(len, arrays)), *(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)))
    if math.prod(shape) * arrays[0].itemsize > max_bytes:  # each long on another axis
        raise invalid(f"at most {max_bytes} bytes are joined. Received: {list(shape)} after padding.")
    padded = np.empty(shape, arrays[0].dtype)
    start = 0
    for array in arrays:
        rows = padded[start : start + len(array)]
        if rows.size:
            if not array.size:
                raise invalid("a tensor without elements is not joined with others that have some.")
            rows[...] = array.flat[0]
            place = (slice(None), *map(slice, array.shape[1:]))
            rows[place] = array
        start += len(array)
    return padded
