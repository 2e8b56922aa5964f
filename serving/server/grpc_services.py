"""TF Serving's gRPC services."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serving.server.errors import RequestError, invalid
from serving.server.loaded_version import LoadedVersion
from serving.server.metrics import Metrics, RequestLabels
from serving.server.model_ref import ModelRef
from serving.server.options import ServerOptions
from serving.server.predictor import Predictor
from serving.server.signature import Arrays, Signature
from serving.server.tensors import inputs_of, to_proto
from serving.server.work_queue import NO_DEADLINE

logger = logging.getLogger(__name__)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SIGNATURE_DEF = "signature_def"

Method = Callable[[RequestLabels, Any, float], Awaitable[bytes]]


class GrpcServices:
    """PredictionService (Predict, GetModelMetadata) and ModelService (GetModelStatus); other methods are UNIMPLEMENTED.

    Args:
        predictor: Predictor.
        metrics: Metrics.
        options: ServerOptions.
    """

    def __init__(self, predictor: Predictor, metrics: Metrics, options: ServerOptions):
        self._predictor = predictor
        self._metrics = metrics
        self._options = options

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What a grpc.aio server registers."""
        prediction = {
            "Predict": self._method("Predict", predict_pb2.PredictRequest, self._predict),
            "GetModelMetadata": self._method(
                "GetModelMetadata", get_model_metadata_pb2.GetModelMetadataRequest, self._metadata
            ),
        }
        model = {
            "GetModelStatus": self._method("GetModelStatus", get_model_status_pb2.GetModelStatusRequest, self._status)
        }
        return (
            grpc.method_handlers_generic_handler(PREDICTION_SERVICE, prediction),
            grpc.method_handlers_generic_handler(MODEL_SERVICE, model),
        )

    async def _predict(self, asked: RequestLabels, request: Any, deadline: float) -> bytes:
        spec = request.model_spec

        def decode(version: LoadedVersion) -> tuple[Signature, Arrays]:
            signature = version.signature(spec.signature_name)
            return signature, inputs_of(request, signature, self._options)

        def encode(version: LoadedVersion, signature: Signature, outputs: Arrays) -> bytes:
            response = predict_pb2.PredictResponse()
            response.model_spec.name, response.model_spec.signature_name = spec.name, signature.name
            response.model_spec.version.value = version.number
            for name in request.output_filter or outputs:
                response.outputs[name].CopyFrom(to_proto(outputs[name], signature.outputs[name]))
            return response.SerializeToString()

        return await self._predictor.predict(asked, _target(spec), decode, encode, deadline)

    async def _metadata(self, asked: RequestLabels, request: Any, deadline: float) -> bytes:
        target = _target(request.model_spec)
        if set(request.metadata_field) != {SIGNATURE_DEF}:
            raise invalid(f"metadata_field: {SIGNATURE_DEF} is expected. Received: {list(request.metadata_field)[:5]}.")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._predictor.lease(target) as version:
            asked.model = target.model
            response.model_spec.name, response.model_spec.version.value = target.model, version.number
            response.metadata[SIGNATURE_DEF].Pack(signature_defs(version))
        return response.SerializeToString()

    async def _status(self, asked: RequestLabels, request: Any, deadline: float) -> bytes:
        target = _target(request.model_spec)
        response = get_model_status_pb2.GetModelStatusResponse(model_version_status=self._predictor.statuses(target))
        asked.model = target.model
        return response.SerializeToString()

    def _method(self, name: str, request_type: Any, method: Method) -> grpc.RpcMethodHandler:
        async def answer(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            remaining = context.time_remaining()
            deadline = NO_DEADLINE if remaining is None else time.monotonic() + remaining
            try:
                with self._metrics.request("grpc", name) as asked:
                    request = _parsed(request_type, body)
                    return await method(asked, request, deadline)
            except RequestError as error:
                refusal = error
            except Exception as error:
                logger.exception("%s failed", name)
                refusal = RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
            await context.abort(refusal.code, str(refusal))
            raise AssertionError  # abort raises

        # Requests come as bytes: gRPC would answer UNKNOWN to one that it can't decode.
        return grpc.unary_unary_rpc_method_handler(answer)


def signature_defs(version: Any) -> Any:
    """The SignatureDefMap of a version."""
    definitions = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in version.signature_defs.items():
        definitions.signature_def[name].CopyFrom(definition)
    return definitions


def _parsed(request_type: Any, body: bytes) -> Any:
    request = request_type()
    try:
        consumed = request.ParseFromString(body)
    except DecodeError as error:
        raise invalid(f"{request_type.__name__}: a whole message is expected. Received: {error}.") from error
    if consumed != len(body):  # the parser of older protobuf stops at some faults without an error
        raise invalid(f"{request_type.__name__}: a whole message is expected. Received: faults after byte {consumed}.")
    return request


def _target(spec: Any) -> ModelRef:
    if not spec.name:
        raise invalid("model_spec.name: the name of a model is expected. Received: none.")
    choice = spec.WhichOneof("version_choice")
    number = spec.version.value if choice == "version" else None
    return ModelRef(spec.name, number, spec.version_label if choice == "version_label" else None)
