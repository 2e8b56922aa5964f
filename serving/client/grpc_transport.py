"""TF Serving's gRPC API, with its published protos, which bring TensorFlow along."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from transform.extras import require_extra

require_extra("serving", "serving.client.grpc_transport", "grpc", "tensorflow", "tensorflow_serving")

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from serving.client.errors import RankingError, RankingUnavailable, RequestError, TransientFailure, VersionGone
from serving.client.transport import Metadata, Signature, Tensors, TensorSpec, Transport, is_on_this_machine

_ERRORS: dict[grpc.StatusCode, type[RankingError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: VersionGone,
    grpc.StatusCode.INVALID_ARGUMENT: RequestError,
    grpc.StatusCode.NOT_FOUND: VersionGone,
    grpc.StatusCode.PERMISSION_DENIED: RequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TransientFailure,
    grpc.StatusCode.UNAUTHENTICATED: RequestError,
    grpc.StatusCode.UNAVAILABLE: TransientFailure,
}
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),  # gRPC's own two minutes are how long a server could be back unnoticed
    # all addresses of the name, as of a headless service, not the first alone
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
)


class GrpcTransport(Transport):
    """Calls over one gRPC channel, which all threads share and which connects again by itself.

    Args:
        address: str. `grpc://host:port`, or `grpcs://host:port` for TLS.
        token: str, optional. Sent as `authorization: Bearer`.
        ca: str, optional. The file with the certificates to trust (PEM). Defaults to gRPC's own.
    """

    def __init__(self, address: str, token: str | None = None, ca: str | None = None):
        self.address = address
        scheme, target = address.split("://")
        options = (*_OPTIONS, ("grpc.enable_http_proxy", int(not is_on_this_machine(address))))
        if scheme == "grpcs":
            self._channel = grpc.secure_channel(target, _credentials(ca), options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._headers = (("authorization", f"Bearer {token}"),) if token else ()

    def metadata(self, model: str, version: int | None, label: str | None, timeout: float) -> Metadata:
        """Asks which version answers, and for its signatures."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        elif label:
            request.model_spec.version_label = label
        response = self._call(self._stub.GetModelMetadata, request, timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return Metadata(
            response.model_spec.version.value,
            {
                name: Signature(_specs(signature.inputs), _specs(signature.outputs))
                for name, signature in signatures.signature_def.items()
            },
        )

    def predict(
        self, model: str, version: int, name: str, signature: Signature, inputs: Tensors, timeout: float
    ) -> dict[str, np.ndarray]:
        """Calls a signature."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.version.value = version
        request.model_spec.signature_name = name
        for key, array in inputs.items():
            _fill(request.inputs[key], array)
        response = self._call(self._stub.Predict, request, timeout)
        return {key: tf.make_ndarray(proto) for key, proto in response.outputs.items()}

    def carries(self, dtype: str) -> bool:
        """Whatever a tensor can hold."""
        return True

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        try:
            return method(request, timeout=timeout, metadata=self._headers)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            kind = _ERRORS.get(code, RankingUnavailable)
            if "message larger than max" in details:  # RESOURCE_EXHAUSTED too, but will be so again
                kind = RequestError
            raise kind(f"{self.address}: {code.name}: {details}") from error


def _credentials(ca: str | None) -> grpc.ChannelCredentials:
    if ca is None:
        return grpc.ssl_channel_credentials()
    with open(ca, "rb") as file:
        return grpc.ssl_channel_credentials(file.read())


def _specs(tensors: Any) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(types_pb2.DataType.Name(info.dtype), len(info.tensor_shape.dim))
        for name, info in tensors.items()
    }


def _fill(proto: Any, array: np.ndarray) -> None:
    """Writes an array into a TensorProto, in place."""
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        proto.dtype = types_pb2.DT_STRING
        proto.string_val.extend([text.encode() for text in array.ravel().tolist()])
    else:
        proto.dtype = tf.as_dtype(array.dtype).as_datatype_enum
        proto.tensor_content = array.tobytes()
