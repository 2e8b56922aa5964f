"""TF Serving's REST API, Prometheus's page and the probes."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow.core.protobuf import error_codes_pb2

from serving.server.errors import RequestError, invalid
from serving.server.grpc_services import signature_defs
from serving.server.json_tensors import JsonRequest, to_json
from serving.server.loaded_version import LoadedVersion
from serving.server.metrics import Metrics, RequestLabels
from serving.server.model_ref import ModelRef
from serving.server.options import ServerOptions
from serving.server.predictor import Predictor
from serving.server.signature import Arrays, Signature
from serving.server.work_queue import late

logger = logging.getLogger(__name__)

TIMEOUT_HEADER = "x-request-timeout-ms"

_MODEL = r"(?i:/v1/models)/(?P<model>[^/:]+)(?:/(?i:versions)/(?P<version>\d+)|/(?i:labels)/(?P<label>[^/:]+))?"
_PATHS = {
    "GET": re.compile(rf"{_MODEL}(?P<metadata>/(?i:metadata))?"),
    "POST": re.compile(rf"{_MODEL}:(?i:predict)"),
}
_MOST = 2**63 - 1
_WITH_DEFAULTS: dict[str, Any] = {  # the argument's name hangs on protobuf's version
    "always_print_fields_with_no_presence"
    if "always_print_fields_with_no_presence" in inspect.signature(MessageToDict).parameters
    else "including_default_value_fields": True
}
_HTTP = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class RestApp:
    """TF Serving's REST API.

    Args:
        predictor: Predictor.
        metrics: Metrics.
        options: ServerOptions.
        accepting: callable. Whether the server still takes requests, for `/readyz`.
    """

    def __init__(self, predictor: Predictor, metrics: Metrics, options: ServerOptions, accepting: Callable[[], bool]):
        self._predictor = predictor
        self._metrics = metrics
        self._options = options
        self._accepting = accepting

    def application(self) -> Starlette:
        """What an ASGI server runs."""
        routes = [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/monitoring/prometheus/metrics", self._prometheus),
            Route("/{path:path}", self._models, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
        ]
        return Starlette(routes=routes)

    async def _healthz(self, request: Request) -> Response:
        return Response("ok\n")

    async def _readyz(self, request: Request) -> Response:
        ready = self._accepting() and self._predictor.ready
        return Response("ok\n" if ready else "not ready\n", 200 if ready else 503)

    async def _prometheus(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        path = request.scope["path"]
        if not path.lower().startswith("/v1/"):
            return _error(404, f"Not found: {path[:200]}")
        match = _PATHS[request.method].fullmatch(path) if request.method in _PATHS else None
        if request.method == "POST":
            method, answer = "Predict", self._predict
        elif match is not None and match["metadata"]:
            method, answer = "GetModelMetadata", self._metadata
        else:
            method, answer = "GetModelStatus", self._status
        try:
            with self._metrics.request("rest", method) as asked:
                if match is None:
                    raise invalid(f"Malformed request: {request.method} {path[:200]}")
                target = ModelRef(match["model"], _number(match["version"]), match["label"])
                return Response(await answer(request, asked, target), media_type="application/json")
        except _TooLarge as error:
            return _error(413, str(error))
        except RequestError as error:
            return _error(_HTTP.get(error.code, 500), str(error))
        except ClientDisconnect:
            return _error(499, "the client is gone")
        except Exception as error:
            logger.exception("%s failed", method)
            return _error(500, f"{type(error).__name__}: {error}")

    async def _predict(self, request: Request, asked: RequestLabels, target: ModelRef) -> bytes:
        deadline = time.monotonic() + self._seconds(request)
        try:
            body = await asyncio.wait_for(self._body(request), deadline - time.monotonic())
        except asyncio.TimeoutError as error:
            raise late() from error
        parsed: list[JsonRequest] = []

        def decode(version: LoadedVersion) -> tuple[Signature, Arrays]:
            parsed.append(JsonRequest.parse(body))
            signature = version.signature(parsed[0].signature_name)
            inputs = parsed[0].arrays(signature)
            signature.check_values(inputs, self._options.max_string_bytes)
            return signature, inputs

        def encode(version: LoadedVersion, signature: Signature, outputs: Arrays) -> bytes:
            return to_json(outputs, parsed[0].rows)

        return await self._predictor.predict(asked, target, decode, encode, deadline)

    async def _metadata(self, request: Request, asked: RequestLabels, target: ModelRef) -> bytes:
        with self._predictor.lease(target) as version:
            asked.model = target.model
            definitions = MessageToDict(signature_defs(version), preserving_proto_field_name=True, **_WITH_DEFAULTS)
            spec = {"name": target.model, "signature_name": "", "version": str(version.number)}
        return json.dumps({"model_spec": spec, "metadata": {"signature_def": definitions}}).encode()

    async def _status(self, request: Request, asked: RequestLabels, target: ModelRef) -> bytes:
        found = self._predictor.statuses(target)
        asked.model = target.model
        return json.dumps({"model_version_status": [_status_json(status) for status in found]}, indent=1).encode()

    async def _body(self, request: Request) -> bytes:
        parts, size, most = [], 0, self._options.max_request_bytes
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise _TooLarge(f"body: at most {most} bytes are expected. Received: more.")
            parts.append(part)
        return b"".join(parts)

    def _seconds(self, request: Request) -> float:
        """How long the request may take: its header's milliseconds, at most the server's own."""
        most = self._options.rest_api_timeout_in_ms
        text = request.headers.get(TIMEOUT_HEADER, str(most))
        if not text.isascii() or not text.isdecimal():
            raise invalid(f"header {TIMEOUT_HEADER}: whole milliseconds are expected. Received: {ascii(text)}.")
        return min(int(text[:18]), most) / 1000


class _TooLarge(RequestError):
    def __init__(self, message: str):
        super().__init__(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def _number(version: str | None) -> int | None:
    if version is not None and len(version) > 18 and int(version[:30]) > _MOST:
        raise invalid(f"Failed to convert version: {version[:30]} to numeric.")
    return None if version is None else int(version)


def _status_json(status: Any) -> dict[str, Any]:
    return {
        "version": str(status.version),
        "state": type(status).State.Name(status.state),
        "status": {
            "error_code": error_codes_pb2.Code.Name(status.status.error_code),
            "error_message": status.status.error_message,
        },
    }


def _error(code: int, message: str) -> Response:
    return Response(json.dumps({"error": message}), code, media_type="application/json")
