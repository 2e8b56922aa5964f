"""A small server of TF Serving's API for the client's tests: real signatures, faults to order."""

import inspect
import json
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

PRINT_ALL = {  # as TF Serving does; the option has another name from protobuf 5 on
    name: True
    for name in ("including_default_value_fields", "always_print_fields_with_no_presence")
    if name in inspect.signature(json_format.MessageToDict).parameters
}
HTTP = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def load(path):
    with open(f"{path}/saved_model.pb", "rb") as file:
        definitions = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs[0].signature_def
    return tf.saved_model.load(path), definitions


class Refused(Exception):
    pass


class StandIn(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, versions):
        self.versions = dict(versions)
        self.calls = []
        self.faults = []
        self.grpc_port = self.http_port = 0

    def start(self):
        self._grpc = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._grpc)
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        self._grpc.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", self.http_port), handler(self))
        self._http.daemon_threads = True
        self.http_port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def stop(self):
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()

    def address(self, scheme):
        return f"{scheme}://127.0.0.1:{self.grpc_port if scheme == 'grpc' else self.http_port}"

    # === The API ===

    def find(self, name, version):
        self.calls.append(name)
        if self.faults:
            fault = self.faults.pop(0)
            if callable(fault):
                fault()
            else:
                raise Refused(*fault)
        version = version or max(self.versions, default=0)
        if name is None or version not in self.versions:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific(small, {version})")
        return version, *self.versions[version]

    def run(self, name, version, inputs):
        _, loaded, _ = self.find(name, version)
        try:
            return loaded.signatures[name](**inputs)
        except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error

    def Predict(self, request, context):
        try:
            name, version = request.model_spec.signature_name, request.model_spec.version.value
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            outputs = self.run(name, version, inputs)
        except Refused as error:
            context.abort(*error.args)
        response = predict_pb2.PredictResponse()
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response

    def GetModelMetadata(self, request, context):
        try:
            version, _, definitions = self.find("metadata", request.model_spec.version.value)
        except Refused as error:
            context.abort(*error.args)
        return metadata(version, definitions)


def metadata(version, definitions):
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.version.value = version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, value in definitions.items():
        signatures.signature_def[key].CopyFrom(value)
    response.metadata["signature_def"].Pack(signatures)
    return response


def handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, work):
            try:
                status, body = 200, work()
            except Refused as error:
                status, body = HTTP[error.args[0]], {"error": error.args[1]}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def version(self):
            parts = self.path.split("/")
            return int(parts[5].split(":")[0]) if "versions" in parts else None

        def do_GET(self):
            def work():
                version, _, definitions = server.find("metadata", self.version())
                body = json_format.MessageToDict(
                    metadata(version, definitions), preserving_proto_field_name=True, **PRINT_ALL
                )
                body["metadata"]["signature_def"].pop("@type")
                return body

            self.answer(work)

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def work():
                if not server.versions:
                    server.find("none", None)
                loaded, _ = next(iter(server.versions.values()))
                specs = loaded.signatures[request["signature_name"]].structured_input_signature[1]
                inputs = {key: tf.constant(value, specs[key].dtype) for key, value in request["inputs"].items()}
                outputs = server.run(request["signature_name"], self.version(), inputs)
                listed = {key: np.asarray(value).tolist() for key, value in outputs.items()}
                return {"outputs": listed if len(listed) > 1 else next(iter(listed.values()))}

            self.answer(work)

        def log_message(self, *_):
            pass

    return Handler
