"""TF Serving's REST API, with numpy and httpx alone."""

from __future__ import annotations

import json
import math
import ssl
import time
from typing import Any

import httpx
import numpy as np

from serving.client.errors import RankingError, RankingUnavailable, RequestError, TransientFailure, VersionGone
from serving.client.transport import Metadata, Signature, Tensors, TensorSpec, Transport, is_on_this_machine

_DTYPES = {  # that TF Serving reads from JSON
    "DT_BOOL": np.bool_,
    "DT_DOUBLE": np.float64,
    "DT_FLOAT": np.float32,
    "DT_INT32": np.int32,
    "DT_INT64": np.int64,
    "DT_STRING": np.object_,
}
_ERRORS: dict[int, type[RankingError]] = {
    400: RequestError,
    401: RequestError,
    403: RequestError,
    413: RequestError,
    404: VersionGone,
    429: TransientFailure,
    502: TransientFailure,  # of a proxy whose server is away
    503: TransientFailure,
}


class RestTransport(Transport):
    """Calls over HTTP. Connections are kept and shared by all threads.

    Args:
        address: str. `http://host:port` or `https://host:port`, with a path where a proxy wants one.
        token: str, optional. Sent as `Authorization: Bearer`.
        ca: str, optional. The file with the certificates to trust (PEM). Defaults to the system's.
    """

    def __init__(self, address: str, token: str | None = None, ca: str | None = None):
        self.address = address
        self._http = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            verify=ssl.create_default_context(cafile=ca) if ca else True,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=not is_on_this_machine(address),
        )

    def metadata(self, model: str, version: int | None, label: str | None, timeout: float) -> Metadata:
        """Asks which version answers, and for its signatures."""
        which = f"/versions/{version}" if version is not None else f"/labels/{label}" if label else ""
        answer = self._request("GET", f"/v1/models/{model}{which}/metadata", None, timeout)
        try:
            signatures = answer["metadata"]["signature_def"]["signature_def"]
            return Metadata(
                int(answer["model_spec"]["version"]),
                {
                    name: Signature(_specs(s.get("inputs", {})), _specs(s.get("outputs", {})))
                    for name, s in signatures.items()
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._no_api(f"metadata without {error}") from error

    def predict(
        self, model: str, version: int, name: str, signature: Signature, inputs: Tensors, timeout: float
    ) -> dict[str, np.ndarray]:
        """Calls a signature. NaN travels as `NaN`, as TF Serving reads and writes it."""
        body = {"signature_name": name, "inputs": {key: array.tolist() for key, array in inputs.items()}}
        url = f"/v1/models/{model}/versions/{version}:predict"
        answer = self._request("POST", url, json.dumps(body, separators=(",", ":")).encode(), timeout)
        try:
            outputs = answer["outputs"]
            if len(signature.outputs) == 1:  # TF Serving leaves the name out then
                outputs = dict.fromkeys(signature.outputs, outputs)
            return {key: np.array(outputs[key], _DTYPES[spec.dtype]) for key, spec in signature.outputs.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise self._no_api(f"outputs that don't fit signature `{name}`: {error}") from error

    def carries(self, dtype: str) -> bool:
        """TF Serving reads no half precision from JSON."""
        return dtype in _DTYPES

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _request(self, method: str, url: str, content: bytes | None, timeout: float) -> Any:
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": str(math.ceil(1000 * timeout))}
        end, body = time.monotonic() + timeout, bytearray()
        try:
            with self._http.stream(method, url, content=content, headers=headers, timeout=timeout) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > end:  # httpx's time-out is for each read alone
                        raise httpx.ReadTimeout("")
        except httpx.TimeoutException as error:
            raise RankingUnavailable(
                f"{self.address}: an answer within the deadline is expected. Received: none in {timeout:.3g} s. "
                "Allow more time, or give the server less to do."
            ) from error
        except httpx.TransportError as error:
            raise TransientFailure(
                f"{self.address}: a server is expected. Received: {str(error).rstrip('.') or type(error).__name__}. "
                "Start it, or correct the address."
            ) from error
        if response.status_code != 200:
            kind = _ERRORS.get(response.status_code, RankingUnavailable)
            raise kind(f"{self.address}: HTTP {response.status_code}: {_text(body)}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise self._no_api(f"{body[:200].decode(errors='replace')!r}") from error

    def _no_api(self, received: str) -> RankingUnavailable:
        return RankingUnavailable(
            f"{self.address}: TF Serving's REST API is expected. Received: {received}. Correct the address."
        )


def _specs(tensors: dict[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(info["dtype"], len(info["tensor_shape"].get("dim", ()))) for name, info in tensors.items()}


def _text(body: bytearray) -> str:
    """The server's message: TF Serving puts it under `error`."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace")
