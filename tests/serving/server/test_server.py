"""The embedded server, asked by TF Serving's own stubs and over HTTP, answers as the model does."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.export.model_files import WARMUP_FILE
from serving.server import __main__ as command
from serving.server.batcher import _joined
from serving.server.batching_parameters import BatchingParameters
from serving.server.errors import RequestError, ServerError, of_tensorflow
from serving.server.model_server import ModelServer
from serving.server.options import ServerOptions
from tests.testing.tiny_model import NAME, SECONDS, Client, Gate, floats, request, serving, until, write_model

pytestmark = pytest.mark.server

TOLERANCE = 1e-6


# === A real model ===


@pytest.fixture(scope="module")
def real(small, served, tmp_path_factory):
    """A served ranking model, the signatures as they are called directly, and its requests."""
    base = tmp_path_factory.mktemp("real")
    shutil.copytree(served.path, base / "7", ignore=shutil.ignore_patterns(WARMUP_FILE))
    with serving(base) as server:
        requests = [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP").take(5)]
        yield server, served.loaded, requests


def _inputs_of(loaded, name: str, requests: list[bytes]) -> dict[str, np.ndarray]:
    """Some inputs of a signature, two rows of three."""
    if name in ("serving_default", "transform_features"):
        return {"examples": np.array(requests, object)}
    random, inputs = np.random.default_rng(1), {}
    for key, spec in loaded.signatures[name].structured_input_signature[1].items():
        shape = [size or (2 if axis == 0 else 3) for axis, size in enumerate(spec.shape)]
        if key == "candidate_count" or key.endswith("_length"):
            inputs[key] = np.full(shape, 3)
        elif spec.dtype == tf.string:
            values = [f"{key[0]}{number}".encode() for number in random.integers(0, 9, int(np.prod(shape)))]
            inputs[key] = np.array(values, object).reshape(shape)
        else:
            inputs[key] = random.random(shape).astype(spec.dtype.as_numpy_dtype)
    return inputs


SIGNATURES = [
    "serving_default",
    "rank",
    "encode_user",
    "rank_with_user_state",
    "summarize_candidates",
    "score_summary",
    "transform_features",
]


def _directly(loaded, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {key: tf.constant(value) for key, value in inputs.items()}
    return {key: tensor.numpy() for key, tensor in loaded.signatures[name](**tensors).items()}


@pytest.mark.parametrize("name", SIGNATURES)
def test_answers_are_those_of_the_signature(real, name):
    server, loaded, requests = real
    inputs = _inputs_of(loaded, name, requests)
    expected = _directly(loaded, name, inputs)
    over_grpc, version = Client(server.grpc_port).predict(request(name, **inputs))
    assert version == 7
    columns = {key: _as_json(value.tolist()) for key, value in inputs.items()}
    body = {"signature_name": name, "inputs": columns}
    over_rest = _post(server, body).json()["outputs"]
    rows = {
        "signature_name": name,
        "instances": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }
    by_row = _post(server, rows).json()["predictions"]
    assert set(over_grpc) == set(over_rest) == set(by_row[0]) == set(expected)
    for key, values in expected.items():
        assert over_grpc[key].dtype == values.dtype
        np.testing.assert_allclose(over_grpc[key], values, atol=TOLERANCE, err_msg=key)
        np.testing.assert_allclose(over_rest[key], values, atol=TOLERANCE, err_msg=key)
        np.testing.assert_allclose([row[key] for row in by_row], values, atol=TOLERANCE, err_msg=key)


def _as_json(value):
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _post(server: ModelServer, body, path: str = f"/v1/models/{NAME}:predict", **options) -> httpx.Response:
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return httpx.post(f"http://127.0.0.1:{server.rest_port}{path}", content=content, timeout=SECONDS, **options)


def _get(server: ModelServer, path: str, **options) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{server.rest_port}{path}", timeout=SECONDS, **options)


def test_metadata_is_the_saved_models(real):
    server, loaded, _ = real
    path = Path(server.models[0].config.base_path, "7", "saved_model.pb")
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs[0].signature_def
    response, told = Client(server.grpc_port).metadata(), get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(told)
    assert dict(told.signature_def) == dict(saved)
    assert (response.model_spec.name, response.model_spec.version.value) == (NAME, 7)
    over_rest = _get(server, f"/v1/models/{NAME}/versions/7/metadata").json()
    assert over_rest["model_spec"] == {"name": NAME, "signature_name": "", "version": "7"}
    again = json_format.ParseDict(over_rest["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap())
    assert again == told


# === Forms of requests ===


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("tiny")
    write_model(base, 1, records=[request(x=floats(1, 2)), request("limited", x=floats([1, 2]))])
    return base


@pytest.fixture(scope="module")
def server(base):
    with serving(base) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return Client(server.grpc_port)


def test_a_filter_chooses_outputs(client):
    message = request(x=floats(3))
    message.output_filter.append("y")
    assert {name: value.tolist() for name, value in client.predict(message)[0].items()} == {"y": [3.0]}


def test_repeated_fields_and_the_last_value_repeated(client):
    message = request(x=floats(0, 0, 0))
    message.inputs["x"].tensor_content = b""
    message.inputs["x"].float_val[:] = [1.0, 2.0]
    assert client.predict(message)[0]["y"].tolist() == [1.0, 2.0, 2.0]


def test_strings_are_bytes(client, server):
    names = np.array([b"a\0", "ä".encode(), b"\xff\xfe", b""], object)
    inputs = {"name": names, "count": np.zeros((4, 1), int), "pair": np.zeros((4, 2), np.float32), "flag": [True] * 4}
    outputs, _ = client.predict(request("typed", **inputs))
    assert outputs["name"].tolist() == names.tolist()
    columns = {"name": _as_json(names.tolist()), "count": [[0]] * 4, "pair": [[0, 0]] * 4, "flag": [True] * 4}
    answer = _post(server, {"signature_name": "typed", "inputs": columns}).json()["outputs"]
    assert answer["name"] == ["a\0", "ä", {"b64": "//4="}, ""], "what is no text comes in base64"
    assert answer["name_bytes"] == _as_json(names.tolist()), "by its name"


def test_rest_forms(server):
    def posted(content):
        answer = _post(server, content)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        return answer.json()

    assert posted({"instances": [1.0, 2]}) == {"predictions": [{"y": 1.0, "version": 1}, {"y": 2.0, "version": 1}]}
    assert posted({"instances": [{"x": 4}]}) == {"predictions": [{"y": 4.0, "version": 1}]}
    assert (
        posted({"inputs": [1, 2]}) == posted({"inputs": {"x": [1, 2]}}) == {"outputs": {"y": [1, 2], "version": [1, 1]}}
    )
    assert posted({"signature_name": "one", "inputs": [[1, 2, 3]]}) == {"outputs": [6.0]}, "one output has no name"
    assert posted({"signature_name": "one", "instances": [[1, 2, 3]]}) == {"predictions": [6.0]}
    whole = {"small": [-(2**31)], "tiny": [255], "half": [0.5]}
    assert posted({"signature_name": "whole", "inputs": whole}) == {"outputs": whole}
    special = _post(server, '{"inputs": [NaN, Infinity, -Infinity, 1e3]}').text
    assert '"y":[NaN,Infinity,-Infinity,1000.0]' in special


def test_rest_paths(server):
    one = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert _get(server, f"/v1/models/{NAME}").json() == {"model_version_status": [one]}
    assert _get(server, f"/v1/models/{NAME}/versions/1").json() == {"model_version_status": [one]}
    assert _post(server, {"instances": [1]}, f"/v1/models/{NAME}/versions/1:predict").status_code == 200
    assert _get(server, "/v1/models/%74iny").status_code == 200, "a path may be percent-encoded"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server):
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/{NAME}:predict"
    done = subprocess.run(
        ["curl", "-s", "-d", '{"instances": [5]}', "-X", "POST", url], capture_output=True, check=True, timeout=SECONDS
    )
    assert json.loads(done.stdout) == {"predictions": [{"y": 5.0, "version": 1}]}


# === What an operator reads ===


def _metric(server: ModelServer, name: str) -> float:
    page = _get(server, "/monitoring/prometheus/metrics").text
    found = re.findall(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[0]) if found else 0.0


def test_requests_are_counted_by_method_signature_and_code(base):
    with serving(base) as server:
        client = Client(server.grpc_port)
        for _ in range(3):
            client.predict(request(x=floats(1)))
        _post(server, {"inputs": {"x": ["a"]}})
        with pytest.raises(grpc.RpcError):
            client.predict(request("no_such_signature", model="no_such_model"))
        names = f'method="Predict",model="{NAME}",signature="serving_default"'
        assert _metric(server, f'serving_requests_total{{api="grpc",code="OK",{names}}}') == 3
        assert _metric(server, f'serving_request_seconds_count{{api="grpc",{names}}}') == 3
        page = _get(server, "/monitoring/prometheus/metrics").text
        assert 'api="rest",code="INVALID_ARGUMENT"' in page
        assert "no_such" not in page, "clients make no time series"
        assert _metric(server, f'serving_version_loaded{{model="{NAME}",version="1"}}') == 1


def test_sizes_of_the_warm_up_are_no_new_shapes(base):
    with serving(base) as server:
        client, name = Client(server.grpc_port), f'serving_retraces{{model="{NAME}",version="1"}}'
        for _ in range(2):
            client.predict(request(x=floats(3, 4)))
            client.predict(request("limited", x=floats([1, 2])))
        assert _metric(server, name) == 0
        for _ in range(2):
            client.predict(request(x=floats(3, 4, 5)))
        assert _metric(server, name) == 1


def test_health(server):
    assert _get(server, "/healthz").status_code == _get(server, "/readyz").status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "tensorflow.serving.PredictionService"):
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_server_without_versions_is_alive_and_gets_ready(tmp_path):
    with serving(tmp_path) as server:
        assert _get(server, "/healthz").status_code == 200
        assert _get(server, "/readyz").status_code == 503
        write_model(tmp_path, 1)
        until(lambda: _get(server, "/readyz").status_code == 200)


# === Limits ===


def _code(call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def test_a_late_request_is_not_started(base, tmp_path):
    first, second = Gate(tmp_path / "first"), Gate(tmp_path / "second")
    with serving(base, num_threads=1) as server, ThreadPoolExecutor(4) as threads:
        client, version = Client(server.grpc_port), server.models[0].available[0]
        running = threads.submit(client.predict, first.request())
        until(lambda: version.in_flight == 1)
        assert _code(lambda: client.predict(second.request(), timeout=0.2)) == grpc.StatusCode.DEADLINE_EXCEEDED
        late = {"signature_name": "gate", "instances": [str(second.path)]}
        answer = _post(server, late, headers={"X-Request-Timeout-Ms": "100"})
        assert (answer.status_code, list(answer.json())) == (504, ["error"])
        first.open()
        assert running.result()[1] == 1
        client.predict(request(x=floats(1)))  # the thread has been through the queue
        assert second.nobody_waits()


def test_a_request_that_takes_too_long_is_given_up(base, tmp_path):
    gate = Gate(tmp_path / "gate")
    with serving(base, num_threads=1, rest_api_timeout_in_ms=200) as server:
        answer = _post(server, {"signature_name": "gate", "instances": [str(gate.path)]})
        assert answer.status_code == 504
        gate.open()


def test_a_full_queue_refuses_and_goes_on(base, tmp_path):
    gate = Gate(tmp_path / "gate")
    with serving(base, num_threads=1, max_queue=1) as server, ThreadPoolExecutor(4) as threads:
        client = Client(server.grpc_port)
        running = threads.submit(client.predict, gate.request())
        until(lambda: server.models[0].available[0].in_flight == 1)
        waiting = threads.submit(client.predict, request(x=floats(1)))
        until(lambda: _metric(server, "serving_queue_depth") == 1)
        assert _code(lambda: client.predict(request(x=floats(1)))) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _post(server, {"instances": [1]}).status_code == 429
        gate.open()
        assert running.result() and waiting.result()
        assert client.predict(request(x=floats(1)))


def test_without_a_queue_a_free_thread_still_answers(base):
    with serving(base, num_threads=1, max_queue=0) as server:
        assert Client(server.grpc_port).predict(request(x=floats(1)))


def test_a_client_that_gives_up_is_counted(base, tmp_path):
    gate = Gate(tmp_path / "gate")
    with serving(base) as server:
        call = Client(server.grpc_port).prediction.Predict.future(gate.request())
        until(lambda: server.models[0].available[0].in_flight == 1)
        call.cancel()
        until(lambda: 'code="CANCELLED"' in _get(server, "/monitoring/prometheus/metrics").text)
        assert server.models[0].available[0].in_flight == 0
        gate.open()


# === Batching ===


def test_requests_are_joined_and_each_gets_its_rows(base, tmp_path):
    parameters = tmp_path / "batching_parameters.txt"
    parameters.write_text(
        "max_batch_size { value: 6 }\nbatch_timeout_micros { value: 60000000 }  # full batches only\n"
        "num_batch_threads { value: 2 }\npad_variable_length_inputs: true\n"
    )
    with serving(base, enable_batching=True, batching_parameters_file=str(parameters)) as server:
        client = Client(server.grpc_port)
        sent = [floats([1], [2]), floats([3, 4]), floats([5, 6, 7], [8, 9, 10], [0, 0, 1])]
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda x: client.predict(request("limited", x=x))[0], sent))
        for x, outputs in zip(sent, answers, strict=True):
            padding = [[x[0, 0]] * (3 - x.shape[1])] * len(x)
            assert outputs["x"].tolist() == np.append(x, padding, axis=1).tolist(), (
                "as long as the longest of the batch"
            )
            assert outputs["sum"].tolist() == outputs["x"].sum(axis=1).tolist()
        assert _metric(server, "serving_batch_rows_count") == 1
        assert _metric(server, "serving_batch_rows_sum") == 6
        assert client.predict(request("one", x=floats([1, 2, 3])))[0]["sum"].tolist() == [6.0], "fixed: not joined"
        assert client.predict(request("limited", x=floats(*[[1]] * 6)))[0]["sum"].shape == (6,), "a batch of its own"
        with pytest.raises(grpc.RpcError, match="Task size 7 is larger than maximum input batch size 6") as caught:
            client.predict(request("limited", x=floats(*[[1]] * 7)))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_bad_request_spoils_no_other_of_its_batch(base, tmp_path):
    parameters = tmp_path / "batching_parameters.txt"
    parameters.write_text(
        "max_batch_size { value: 2 } batch_timeout_micros { value: 60000000 } pad_variable_length_inputs: true"
    )
    with serving(base, enable_batching=True, batching_parameters_file=str(parameters)) as server:
        client = Client(server.grpc_port)
        with ThreadPoolExecutor(2) as threads:
            good = threads.submit(client.predict, request("limited", x=floats([1])))
            until(lambda: server.models[0].available[0].in_flight == 1)
            assert _code(lambda: client.predict(request("limited", x=floats([1, 2, 3, 4])))) == (
                grpc.StatusCode.INVALID_ARGUMENT
            )
            assert good.result()[0]["sum"].tolist() == [1.0]


def test_requests_of_other_lengths_are_not_joined_without_padding(base):
    with serving(base, enable_batching=True) as server:
        client = Client(server.grpc_port)
        with ThreadPoolExecutor(2) as threads:
            answers = list(
                threads.map(lambda x: client.predict(request("limited", x=x))[0], [floats([1]), floats([2, 3])])
            )
        assert [outputs["x"].shape for outputs in answers] == [(1, 1), (1, 2)]
        assert _metric(server, "serving_batch_rows_count") == 2


def test_signatures_whose_outputs_have_no_rows_are_not_joined_in_silence(base):
    with serving(base, enable_batching=True) as server, pytest.raises(grpc.RpcError) as caught:
        Client(server.grpc_port).predict(request("uneven", x=floats(1, 2)))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION and "`sum`" in caught.value.details()


@pytest.mark.parametrize("dtype", [object, np.float32])
def test_padding_is_a_tensors_own_first_value(dtype):
    arrays = [np.array([[[1, 2]]], dtype), np.array([[[3], [4]], [[5], [6]]], dtype)]
    assert _joined(arrays, 96).tolist() == [[[1, 2], [1, 1]], [[3, 3], [4, 3]], [[5, 3], [6, 3]]]
    with pytest.raises(RequestError, match="without elements"):
        _joined([*arrays, np.empty((1, 0, 1), dtype)], 1000)
    assert _joined([np.empty((1, 0, 1), dtype), np.empty((2, 0, 2), dtype)], 1000).shape == (3, 0, 2)


def test_small_requests_are_not_joined_to_one_that_fills_the_memory():
    wide, high = np.broadcast_to(True, (1, 2**30, 1)), np.broadcast_to(True, (1, 1, 2**30))
    with pytest.raises(RequestError, match=r"at most 16 bytes are joined. Received: \[2, 1073741824, 1073741824\]"):
        _joined([wide, high], 16)


def test_a_batch_that_is_full_is_not_taken_for_the_next(base, tmp_path, caplog):
    parameters = tmp_path / "batching_parameters.txt"
    parameters.write_text("max_batch_size { value: 3 } batch_timeout_micros { value: 500000 }")
    with serving(base, enable_batching=True, batching_parameters_file=str(parameters)) as server:
        client = Client(server.grpc_port)
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda x: client.predict(request(x=x))[0], [floats(1, 2), floats(3, 4)]))
    assert [outputs["y"].tolist() for outputs in answers] == [[1.0, 2.0], [3.0, 4.0]]
    assert "Batcher" not in caplog.text, "what a timer raises, only the log has"


@pytest.mark.parametrize("text", ["max_batch_size { value: many }", "max_batch_size", "pad_variable_length_inputs: 3"])
def test_bad_batching_parameters(tmp_path, text):
    (tmp_path / "batching.txt").write_text(text)
    with pytest.raises(ServerError, match="BatchingParameters in text form"):
        BatchingParameters.read(str(tmp_path / "batching.txt"))


# === Who may ask ===


def _certificate(folder: Path) -> tuple[str, str]:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.timezone.utc)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    certificate = builder.add_extension(alternative, critical=True).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_tls_and_token(base, tmp_path):
    certificate, key = _certificate(tmp_path)
    (tmp_path / "token").write_text("s3cret\n")
    options = {"ssl_cert_file": certificate, "ssl_key_file": key, "auth_token_file": str(tmp_path / "token")}
    with serving(base, **options) as server:
        credentials = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
        client = Client(0, grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials))
        message = request(x=floats(1))
        for metadata in ([], [("authorization", "Bearer s3cre")], [("authorization", "s3cret")]):
            refused = lambda m=metadata: client.prediction.Predict(message, metadata=m, timeout=SECONDS)  # noqa: E731
            assert _code(refused) == grpc.StatusCode.UNAUTHENTICATED
        client.prediction.Predict(message, metadata=[("authorization", "Bearer s3cret")], timeout=SECONDS)
        health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)

        url, right = f"https://127.0.0.1:{server.rest_port}", {"Authorization": "Bearer s3cret"}
        with httpx.Client(base_url=url, verify=_trusting(certificate), timeout=SECONDS) as http:
            for path in (f"/v1/models/{NAME}", "/monitoring/prometheus/metrics"):
                assert (
                    http.get(path).status_code
                    == http.get(path, headers={"Authorization": "Bearer x"}).status_code
                    == 401
                )
                assert http.get(path, headers=right).status_code == 200
            assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200
        with pytest.raises(httpx.HTTPError):
            _get(server, "/healthz")


def _trusting(certificate: str):
    import ssl

    return ssl.create_default_context(cafile=certificate)


def test_a_token_of_the_environment(base, monkeypatch):
    monkeypatch.setenv("ONERANK_SERVER_TOKEN", "s3cret")
    with serving(base) as server:
        assert _get(server, f"/v1/models/{NAME}").status_code == 401
        assert _get(server, f"/v1/models/{NAME}", headers={"Authorization": "Bearer s3cret"}).status_code == 200


# === As a process ===


class Process:
    """`onerank server`, and where it listens."""

    def __init__(self, base: Path, port: int = 0, rest_port: int = 0):
        flags = {"model_name": NAME, "model_base_path": base, "port": port, "rest_api_port": rest_port}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.server", *(f"--{name}={value}" for name, value in flags.items())],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.line = self.process.stdout.readline()
        self.grpc_port, self.rest_port = map(int, re.findall(r"127\.0\.0\.1:(\d+)", self.line))


def test_a_process_starts_again_after_kill_and_answers_what_is_under_way_on_sigterm(base, tmp_path):
    gate = Gate(tmp_path / "gate")
    first = Process(base)
    assert first.line.startswith(f"Serving {NAME} (1): gRPC on 127.0.0.1:")
    assert Client(first.grpc_port).predict(request(x=floats(2)))[0]["y"].tolist() == [2.0]
    first.process.kill()
    first.process.wait(SECONDS)
    again = Process(base, first.grpc_port, first.rest_port)
    assert (again.grpc_port, again.rest_port) == (first.grpc_port, first.rest_port)
    with ThreadPoolExecutor(2) as threads:
        over_grpc = threads.submit(Client(again.grpc_port).predict, gate.request())
        until(lambda: _metric(again, "serving_requests_under_way") == 1)
        again.process.send_signal(signal.SIGTERM)
        until(lambda: _refuses(again))
        assert again.process.poll() is None
        gate.open()
        assert over_grpc.result()[1] == 1
    assert again.process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_loading_ends_when_asked(tmp_path, number):
    write_model(tmp_path, 1, [Gate(tmp_path / "gate").request()])
    flags = [f"--model_name={NAME}", f"--model_base_path={tmp_path}", "--port=0", f"--rest_api_port={_free_port()}"]
    process = subprocess.Popen([sys.executable, "-m", "serving.server", *flags], stdout=subprocess.PIPE)
    url = f"http://127.0.0.1:{flags[-1].partition('=')[2]}/v1/models/{NAME}"
    try:
        until(lambda: _is_loading(url))
        process.send_signal(number)
        assert process.wait(SECONDS) == 0 and process.stdout.read() == b""
    finally:
        process.kill()
        process.communicate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]


def _is_loading(url: str) -> bool:
    try:
        return "LOADING" in httpx.get(url).text
    except httpx.HTTPError:
        return False


def test_what_is_under_way_and_what_is_being_loaded_share_the_grace(base, tmp_path):
    asked, loaded = Gate(tmp_path / "asked"), Gate(tmp_path / "loaded")
    shutil.copytree(base, tmp_path / "base")
    with ThreadPoolExecutor(1) as threads:
        with serving(tmp_path / "base", shutdown_grace_seconds=2.0) as server:
            threads.submit(Client(server.grpc_port).predict, asked.request())
            until(lambda: server.models[0].available[0].in_flight == 1)
            write_model(tmp_path / "base", 2, [loaded.request()])
            until(lambda: "LOADING" in _get(server, f"/v1/models/{NAME}").text)
            started = time.monotonic()
        took = time.monotonic() - started
        asked.open()
        loaded.open()
    assert took < 3.5


def _refuses(server) -> bool:
    try:
        _get(server, "/healthz")
    except httpx.HTTPError:
        return True
    return False


# === The operator's mistakes ===


def test_mistakes_are_one_line(base, tmp_path, capsys, server):
    (tmp_path / "empty").write_text("")
    (tmp_path / "bad.config").write_text("model_config_list { config { nam")
    (tmp_path / "versions" / "3").mkdir(parents=True)
    (tmp_path / "versions" / "3" / "saved_model.pb").write_bytes(b"no model")
    good, free = [f"--model_base_path={base}"], ["--port=0", "--rest_api_port=0"]
    version = next(Path(base).glob("*/saved_model.pb")).parent
    for flags, told in [
        ([], "--model_base_path or --model_config_file is expected"),
        ([f"--model_base_path={tmp_path}/none"], f"a folder is expected at {tmp_path}/none"),
        ([f"--model_base_path={version}"], f"{version}, which is a version. Give the folder above it."),
        ([*good, "--model_name=a/b"], "a text without / and :"),
        ([*good, "--version_policy=newest"], "`latest:2`"),
        ([*good, "--num_threads=-1"], "--num_threads: a number of at least 0"),
        ([f"--model_config_file={tmp_path}/none"], "a ModelServerConfig in text form"),
        ([f"--model_config_file={tmp_path}/bad.config"], "a ModelServerConfig in text form"),
        ([*good, *free, f"--ssl_cert_file={tmp_path}/empty"], "a PEM certificate and its key"),
        ([*good, *free, f"--auth_token_file={tmp_path}/empty"], "a token is expected"),
        ([*good, *free, f"--port={server.grpc_port}"], f"Received: 127.0.0.1:{server.grpc_port}"),
        ([*good, *free, f"--rest_api_port={server.rest_port}"], f"Received: 127.0.0.1:{server.rest_port}"),
        ([*good, *free, "--host=no.such.host.invalid"], "a free port of this machine"),
        ([f"--model_base_path={tmp_path}/versions", *free], "Received: version 3:"),
    ]:
        assert command.main(flags) == 1, flags
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert told in line


def test_bytes_that_are_no_example_are_told_without_quoting_them():
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tf.io.parse_example([b"\0\0\0"], {"x": tf.io.VarLenFeature(tf.float32)})
    refused = of_tensorflow(caught.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(refused) == "inputs: serialized tf.train.Example messages are expected. Received: other bytes."


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in ServerOptions.__dataclass_fields__)
