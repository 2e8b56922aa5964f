"""What stands between a client and a server in tests: it counts calls, refuses some, and hides versions."""

import json
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import httpx
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from serving.server.rest_app import _HTTP as HTTP

SERVICE = "tensorflow.serving.PredictionService"
REQUESTS = {"Predict": predict_pb2.PredictRequest, "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest}


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):  # clients that hang up
        pass


class FaultProxy:
    """Forwards both of a server's ports.

    Attributes:
        served: set of int. The versions that clients see.
        calls: list of str. The signatures that were asked for, or `metadata`.
        faults: list. What the next calls meet: None, a function to call before it goes on, or the (code, details) of
            the answer.
        tokens: list of str. The `authorization` of each call.
    """

    def __init__(self, server, served):
        self._upstream = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self._http_upstream = httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60)
        self.served, self.calls, self.faults, self.tokens = set(served), [], [], []
        self._grpc_port = self._http_port = 0

    def start(self):
        """Listens; on the same ports as before, if it did."""
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(self._grpc_handler(method, request))
            for method, request in REQUESTS.items()
        }
        self._grpc = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        self._grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self._grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{self._grpc_port}")
        self._grpc.start()
        self._http = QuietServer(("127.0.0.1", self._http_port), self._http_handler())
        self._http_port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()

    def address(self, scheme):
        return f"{scheme}://127.0.0.1:{self._grpc_port if scheme == 'grpc' else self._http_port}"

    def _meet(self, name, version):
        """The version to forward to, or the (code, details) of a refusal."""
        self.calls.append(name)
        fault = self.faults.pop(0) if self.faults else None
        if callable(fault):
            fault()
        elif fault:
            return None, fault
        version = version or max(self.served)
        if version not in self.served:
            return None, (grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({version})")
        return version, None

    def _grpc_handler(self, method, request_type):
        forward = self._upstream.unary_unary(f"/{SERVICE}/{method}")

        def answer(body, context):
            request = request_type.FromString(body)
            name = request.model_spec.signature_name or "metadata"
            self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
            version, refusal = self._meet(name, request.model_spec.version.value)
            if refusal:
                context.abort(*refusal)
            request.model_spec.version.value = version
            try:
                return forward(request.SerializeToString(), timeout=60)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return answer

    def _http_handler(self):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer("POST", json.loads(body)["signature_name"], body)

            def do_GET(self):
                self._answer("GET", "metadata", None)

            def _answer(self, method, name, body):
                parts = self.path.replace(":", "/").split("/")
                asked = int(parts[parts.index("versions") + 1]) if "versions" in parts else None
                proxy.tokens.append(self.headers["Authorization"])
                version, refusal = proxy._meet(name, asked)
                if refusal:
                    status, content = HTTP.get(refusal[0], 500), json.dumps({"error": refusal[1]}).encode()
                else:
                    path = self.path if asked else self.path.replace("/metadata", f"/versions/{version}/metadata")
                    response = proxy._http_upstream.request(method, path, content=body)
                    status, content = response.status_code, response.content
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        return Handler
