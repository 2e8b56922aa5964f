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
from serving.server.metrics import Asked, Metrics
from serving.server.options import ServerOptions
from serving.server.predictor import Predictor, chosen
from serving.server.tensors import inputs_of, to_proto
from serving.server.work_queue import NO_DEADLINE

logger = logging.getLogger(__name__)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SIGNATURE_DEF = "signature_def"

Method = Callable[[Asked, Any, float], Awaitable[Any]]


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

    async def _predict(self, asked: Asked, request: Any, deadline: float) -> Any:
        spec, wanted = request.model_spec, list(request.output_filter)
        name, number, label = _model(spec)

        def decode(version):
            signature = version.signature(spec.signature_name)
            return signature, inputs_of(request, signature, self._options)

        def encode(version, signature, outputs):
            response = predict_pb2.PredictResponse()
            response.model_spec.name, response.model_spec.signature_name = spec.name, signature.name
            response.model_spec.version.value = version.number
            for key, array in chosen(outputs, wanted).items():
                response.outputs[key].CopyFrom(to_proto(array, signature.outputs[key]))
            return response

        return await self._predictor.predict(asked, name, number, label, decode, encode, deadline)

    async def _metadata(self, asked: Asked, request: Any, deadline: float) -> Any:
        name, number, label = _model(request.model_spec)
        if set(request.metadata_field) != {SIGNATURE_DEF}:
            raise invalid(f"metadata_field: {SIGNATURE_DEF} is expected. Received: {list(request.metadata_field)[:5]}.")
        with self._predictor.model(name).lease(number, label) as version:
            asked.model = name
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name, response.model_spec.version.value = name, version.number
            response.metadata[SIGNATURE_DEF].Pack(signature_defs(version))
            return response

    async def _status(self, asked: Asked, request: Any, deadline: float) -> Any:
        name, number, label = _model(request.model_spec)
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.extend(statuses(self._predictor, name, number, label))
        asked.model = name
        return response

    def _method(self, name: str, request_type: Any, method: Method) -> grpc.RpcMethodHandler:
        async def answer(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            remaining = context.time_remaining()
            deadline = NO_DEADLINE if remaining is None else time.monotonic() + remaining
            try:
                with self._metrics.request("grpc", name) as asked:
                    request = _parsed(request_type, body)
                    response = await method(asked, request, deadline)
                return response.SerializeToString()
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


def statuses(predictor: Predictor, name: str, number: int | None, label: str | None) -> list[Any]:
    """What became of a model's versions, as ModelVersionStatus.

    Raises:
        RequestError: NOT_FOUND, or INVALID_ARGUMENT for an unknown label.
    """
    model = predictor.model(name)
    return model.statuses(model.number_of(label) if label is not None else number)


def _parsed(request_type: Any, body: bytes) -> Any:
    request = request_type()
    try:
        consumed = request.ParseFromString(body)
    except DecodeError as error:
        raise invalid(f"{request_type.__name__}: a whole message is expected. Received: {error}.") from error
    if consumed != len(body):  # the parser of older protobuf stops at some faults without an error
        raise invalid(f"{request_type.__name__}: a whole message is expected. Received: faults after byte {consumed}.")
    return request


def _model(spec: Any) -> tuple[str, int | None, str | None]:
    choice = spec.WhichOneof("version_choice")
    if not spec.name:
        raise invalid("model_spec.name: the name of a model is expected. Received: none.")
    return (
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )
