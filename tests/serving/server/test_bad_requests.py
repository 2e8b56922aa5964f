"""Every class of bad request, at its boundary: the status, and the field that the message names."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tests.testing.fuzz_server import fuzz
from tests.testing.tiny_model import NAME, SECONDS, floats, request, serving, write_model

pytestmark = pytest.mark.server

MOST_BYTES, MOST_STRING = 20_000, 100
PREDICT = f"/v1/models/{NAME}:predict"
OK = grpc.StatusCode.OK
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION, EXHAUSTED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("tiny")
    write_model(base, 1)
    with serving(base, max_request_bytes=MOST_BYTES, max_string_bytes=MOST_STRING) as server:
        yield server


# === gRPC ===


class Call(NamedTuple):
    """A gRPC call, its status, and what its message holds."""

    name: str
    message: Any
    code: grpc.StatusCode
    told: str = ""
    method: str = "PredictionService/Predict"


def typed(**changes):
    """A good request to `typed`, with some inputs replaced; None leaves one out."""
    inputs = {
        "name": np.array([b"a", b"b"], object),
        "count": np.zeros((2, 3), np.int64),
        "pair": floats([1, 2], [3, 4]),
        "flag": np.array([True, False]),
        **changes,
    }
    return request("typed", **{name: value for name, value in inputs.items() if value is not None})


def changed(message, change):
    """The message after a change."""
    change(message)
    return message


def x_with(**fields):
    """A request whose `x` has some fields of a TensorProto replaced."""

    def change(message):
        x = message.inputs["x"]
        x.tensor_content = fields.get("content", x.tensor_content)
        x.dtype = fields.get("dtype", x.dtype)
        if "sizes" in fields:
            resize(x, *fields["sizes"])
        x.tensor_shape.unknown_rank = fields.get("unknown_rank", False)
        x.float_val.extend(fields.get("values", []))

    return changed(request(x=floats(1, 2)), change)


def resize(proto, *sizes):
    """Gives a TensorProto another shape; one without elements loses its values."""
    del proto.tensor_shape.dim[:]
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    if 0 in sizes:
        proto.tensor_content = b""
        del proto.float_val[:]


def as_content(proto):
    proto.tensor_content = b"ab"
    del proto.string_val[:]


def repeated(name: bytes, count: int):
    """A request to `typed` of so many rows that says its name once."""
    message = typed(
        name=np.array([name], object),
        count=np.zeros((count, 1), np.int64),
        pair=np.zeros((count, 2), np.float32),
        flag=np.zeros(count, bool),
    )
    resize(message.inputs["name"], count)
    return message


def metadata(*fields, model=NAME, version=None):
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    message.model_spec.name = model
    if version is not None:
        message.model_spec.version.value = version
    return message


def status(model=NAME, version=None):
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = model
    if version is not None:
        message.model_spec.version.value = version
    return message


def sized(size: int) -> bytes:
    """A request of that many bytes; the model ignores what is in its name's field beyond 100 of them."""
    message = request(x=np.zeros(MOST_BYTES // 4 - 100, np.float32))
    message.client_id = b"_" * 50
    missing = size - len(message.SerializeToString())
    message.client_id += b"_" * missing
    missing = size - len(message.SerializeToString())
    message.client_id = message.client_id[: len(message.client_id) + missing]
    assert len(message.SerializeToString()) == size
    return message.SerializeToString()


GOOD = request(x=floats(1, 2)).SerializeToString()
METADATA, STATUS = "PredictionService/GetModelMetadata", "ModelService/GetModelStatus"
CALLS = [
    Call("good", GOOD, OK),
    Call("good typed", typed(), OK),
    Call("NaN is a missing number", request(x=floats("nan", "inf")), OK),
    Call("no rows", request(x=floats()), OK),
    Call("empty", b"", INVALID, "model_spec.name"),
    Call("truncated", GOOD[:-1], INVALID, "PredictRequest"),
    Call("garbage", b"\xff" * 40, INVALID, "PredictRequest"),
    Call("a group's end without its start", GOOD + b"\x0c" + GOOD, INVALID, "PredictRequest"),
    Call("as long as may be", sized(MOST_BYTES), OK),
    Call("too long", sized(MOST_BYTES + 1), EXHAUSTED, str(MOST_BYTES)),
    Call("unknown model", request(model="other", x=floats(1)), NOT_FOUND, "Latest(other)"),
    Call("a path as model", request(model="../tiny", x=floats(1)), NOT_FOUND, "../tiny"),
    Call("unknown version", request(version=2, x=floats(1)), NOT_FOUND, f"Specific({NAME}, 2)"),
    Call("negative version", request(version=-1, x=floats(1)), NOT_FOUND, f"Specific({NAME}, -1)"),
    Call("version 0", request(version=0, x=floats(1)), NOT_FOUND, f"Specific({NAME}, 0)"),
    Call("unknown label", request(label="stable", x=floats(1)), INVALID, "stable"),
    Call("unknown signature", request("other", x=floats(1)), PRECONDITION, 'Serving signature key "other" not found'),
    Call("not for requests", request("__saved_model_init_op"), PRECONDITION, "__saved_model_init_op"),
    Call("missing input", typed(flag=None), INVALID, "missing: `flag`"),
    Call("no input", request(), INVALID, "missing: `x`"),
    Call("unknown input", typed(other=floats(1)), INVALID, "unknown: `other`"),
    Call(
        "wrong dtype",
        typed(count=np.zeros((2, 3), np.int32)),
        INVALID,
        "`count`: int64 [?, ?] is expected. Received: int32",
    ),
    Call(
        "string for number",
        request(x=np.array([b"1"], object)),
        INVALID,
        "`x`: float32 [?] is expected. Received: string",
    ),
    Call("no dtype", x_with(dtype=0), INVALID, "`x`: float32 [?] is expected. Received: DT_INVALID"),
    Call("unknown dtype", x_with(dtype=999), INVALID, "`x`: float32 [?] is expected. Received: dtype 999"),
    Call(
        "rank too low",
        typed(count=np.zeros(2, np.int64)),
        INVALID,
        "`count`: int64 [?, ?] is expected. Received: shape [2]",
    ),
    Call("rank too high", request(x=floats([1])), INVALID, "`x`: float32 [?] is expected. Received: shape [1, 1]"),
    Call("scalar", request(x=np.float32(1)), INVALID, "`x`: float32 [?] is expected. Received: shape []"),
    Call("other fixed size", typed(pair=floats([1, 2, 3], [4, 5, 6])), INVALID, "`pair`: float32 [?, 2]"),
    Call("fixed first axis", request("one", x=floats([1, 2, 3], [4, 5, 6])), INVALID, "`x`: float32 [1, 3]"),
    Call("other number of rows", typed(flag=np.array([True])), INVALID, "`count` and `flag`"),
    Call("too few bytes", x_with(content=b"1234567"), INVALID, "`x`: 8 bytes"),
    Call("too many bytes", x_with(content=b"123456789"), INVALID, "`x`: 8 bytes"),
    Call("no values", x_with(content=b""), INVALID, "`x`: 2 values"),
    Call("too many values", x_with(content=b"", values=[1, 2, 3]), INVALID, "`x`: 2 values"),
    Call("negative size", x_with(sizes=[-1]), INVALID, "`x`: a shape without unknown sizes"),
    Call("unknown rank", x_with(unknown_rank=True), INVALID, "`x`: a shape without unknown sizes"),
    Call("one value for many", x_with(content=b"", values=[1], sizes=[MOST_BYTES // 4]), OK),
    Call(
        "one value for too many", x_with(content=b"", values=[1], sizes=[MOST_BYTES // 4 + 1]), INVALID, "`x`: at most"
    ),
    Call("sizes beyond 64 bits", x_with(content=b"", values=[1], sizes=[2**62]), INVALID, "`x`: at most"),
    Call("one string for many", repeated(b"x" * MOST_STRING, MOST_BYTES // MOST_STRING), OK),
    Call(
        "one string for too many",
        repeated(b"x" * MOST_STRING, MOST_BYTES // MOST_STRING + 1),
        INVALID,
        f"`name`: strings of at most {MOST_BYTES} bytes together",
    ),
    Call(
        "nothing of a size beyond 64 bits",
        changed(request("limited", x=floats([1])), lambda m: resize(m.inputs["x"], 0, 2**62)),
        INVALID,
        "`x`: float32 [?, ?] is expected",
    ),
    Call("string at its longest", typed(name=np.array([b"x" * MOST_STRING, b""], object)), OK),
    Call(
        "string too long",
        typed(name=np.array([b"", b"x" * (MOST_STRING + 1)], object)),
        INVALID,
        "`name`: strings of at most",
    ),
    Call(
        "strings as bytes",
        changed(typed(), lambda m: as_content(m.inputs["name"])),
        INVALID,
        "`name`: 2 values in string_val",
    ),
    Call("no text is a string", typed(name=np.array([b"\xff", b"\xc3("], object)), OK),
    Call("the model's own limit", request("limited", x=floats([1, 2, 3])), OK),
    Call("beyond the model's own limit", request("limited", x=floats([1, 2, 3, 4])), INVALID, "at most 3 candidates"),
    Call("a fault of the values", request("number", text=np.array([b"1", b"x"], object)), INVALID, "string: x"),
    Call("a fault of bytes that are no text", request("number", text=np.array([b"\xff"], object)), INVALID, "string: "),
    Call(
        "unknown output", changed(request(x=floats(1)), lambda m: m.output_filter.append("z")), INVALID, "output_filter"
    ),
    Call(
        "output twice",
        changed(request(x=floats(1)), lambda m: m.output_filter.extend(["y", "y"])),
        INVALID,
        "output_filter",
    ),
    Call("metadata", metadata("signature_def"), OK, method=METADATA),
    Call("no metadata field", metadata(), INVALID, "metadata_field", METADATA),
    Call("unknown metadata field", metadata("signature_def", "x"), INVALID, "metadata_field", METADATA),
    Call("metadata of no model", metadata("signature_def", model="other"), NOT_FOUND, "Latest(other)", METADATA),
    Call("metadata of no version", metadata("signature_def", version=7), NOT_FOUND, f"Specific({NAME}, 7)", METADATA),
    Call("status", status(), OK, method=STATUS),
    Call("status of nothing", b"", INVALID, "model_spec.name", STATUS),
    Call("status of no model", status("other"), NOT_FOUND, "other", STATUS),
    Call("status of no version", status(version=7), NOT_FOUND, "version 7", STATUS),
    Call("classify", b"", grpc.StatusCode.UNIMPLEMENTED, "", "PredictionService/Classify"),
    Call("reload", b"", grpc.StatusCode.UNIMPLEMENTED, "", "ModelService/HandleReloadConfigRequest"),
]


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_grpc(channel, call):
    body = call.message if isinstance(call.message, bytes) else call.message.SerializeToString()
    try:
        channel.unary_unary(f"/tensorflow.serving.{call.method}")(body, timeout=SECONDS)
        code, details = OK, ""
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
    assert (code, call.told in details) == (call.code, True), details


# === REST ===


class Post(NamedTuple):
    """An HTTP request, its status, and what its `error` holds."""

    name: str
    body: Any
    code: int
    told: str = ""
    path: str = PREDICT
    method: str = "POST"
    headers: dict[str, str] = {}


def columns(**changes):
    """A good columnar request to `typed`, with some inputs replaced; None leaves one out."""
    inputs = {"name": ["a", "b"], "count": [[1], [2]], "pair": [[1, 2], [3, 4]], "flag": [True, False], **changes}
    return {"signature_name": "typed", "inputs": {key: value for key, value in inputs.items() if value is not None}}


def rows(**changes):
    """A good request to `typed` in rows, with some inputs of the second one replaced; None leaves one out."""
    row = {"name": "a", "count": [1], "pair": [1, 2], "flag": True}
    second = {key: value for key, value in {**row, **changes}.items() if value is not None}
    return {"signature_name": "typed", "instances": [row, second]}


def whole(**changes):
    inputs = {"small": [0], "tiny": [0], "half": [0], **changes}
    return {"signature_name": "whole", "inputs": inputs}


def padded(size: int) -> str:
    """A good body of that many bytes."""
    return '{"inputs": [1]}'.ljust(size)


DEEP = 15_000
POSTS = [
    Post("good", {"instances": [1.0, 2]}, 200),
    Post("good columns", columns(), 200),
    Post("good rows", rows(), 200),
    Post("NaN is a missing number", '{"instances": [NaN, -Infinity]}', 200),
    Post("empty body", "", 400, "body: JSON is expected"),
    Post("no JSON", "{", 400, "body: JSON is expected"),
    Post("no UTF-8", b'{"inputs": ["\xff\xfe"]}', 400, "body: JSON is expected"),
    Post("too deep", "[" * DEEP, 400, "body: JSON is expected"),
    Post("no object", [1], 400, "body: a JSON object is expected"),
    Post("neither key", {"signature_name": "typed"}, 400, "'inputs' and 'instances'"),
    Post("both keys", {"inputs": [1], "instances": [1]}, 400, "'inputs' and 'instances'"),
    Post("signature is no string", {"signature_name": 1, "inputs": [1]}, 400, "signature_name"),
    Post("unknown signature", {"signature_name": "other", "inputs": [1]}, 400, "other"),
    Post("no rows", {"instances": []}, 400, "instances"),
    Post("rows are no list", {"instances": {"x": 1}}, 400, "instances"),
    Post("as long as may be", padded(MOST_BYTES), 200),
    Post("too long", padded(MOST_BYTES + 1), 413, f"at most {MOST_BYTES} bytes"),
    Post("much too long", padded(5_000_000), 413, f"at most {MOST_BYTES} bytes"),
    Post("missing input", columns(flag=None), 400, "missing: `flag`"),
    Post("unknown input", columns(other=[1]), 400, "unknown: `other`"),
    Post("missing in a row", rows(flag=None), 400, "instances[1]: inputs of signature `typed`"),
    Post("unknown in a row", rows(other=1), 400, "unknown: `other`"),
    Post(
        "a row without names",
        {"signature_name": "typed", "instances": [rows()["instances"][0], 3]},
        400,
        "instances[1]",
    ),
    Post("no names for many inputs", {"signature_name": "typed", "instances": [1]}, 400, "instances: objects"),
    Post("no names for many columns", {"signature_name": "typed", "inputs": [1]}, 400, "inputs: objects"),
    Post("string for number", {"inputs": ["1"]}, 400, "`x`[0]: float32 [?], as numbers"),
    Post("boolean for number", {"inputs": [1, True]}, 400, "`x`[1]: float32 [?], as numbers"),
    Post("null for number", {"inputs": [1, None]}, 400, "Write NaN"),
    Post("number for string", columns(name=["a", 1]), 400, "`name`[1]: string [?], as strings"),
    Post("null for string", columns(name=[None, "a"]), 400, "`name`[0]"),
    Post("number for boolean", columns(flag=[True, 1]), 400, "`flag`[1]: bool [?], as true or false"),
    Post("decimal for whole", columns(count=[[1], [1.0]]), 400, "`count`[1][0]: int64 [?, ?], as whole numbers"),
    Post("object for number", {"inputs": [{"a": 1}]}, 400, "`x`[0]"),
    Post("int64 at its end", columns(count=[[2**63 - 1], [-(2**63)]]), 200),
    Post("int64 beyond its end", columns(count=[[0], [2**63]]), 400, "`count`[1][0]: int64 is expected"),
    Post("int32 beyond its end", whole(small=[2**31]), 400, "`small`[0]: int32 is expected"),
    Post("uint8 beyond its end", whole(tiny=[256]), 400, "`tiny`[0]: uint8 is expected"),
    Post("uint8 below zero", whole(tiny=[-1]), 400, "`tiny`[0]: uint8 is expected"),
    Post("float32 at its end", {"inputs": [3.4028234e38, 1e-50]}, 200),
    Post("float32 beyond its end", {"inputs": [3.5e38]}, 400, "`x`[0]"),
    Post("bfloat16 beyond its end", whole(half=[1e39]), 400, "`half`[0]"),
    Post("whole number in float32", {"inputs": [2**24 - 1]}, 200),
    Post("too whole a number for float32", {"inputs": [0, 2**24]}, 400, "`x`[1]"),
    Post("a number of 400 digits", '{"inputs": [1' + "0" * 400 + "]}", 400, "`x`"),
    Post("a number of 10,000 digits", '{"inputs": [1' + "0" * 10_000 + "]}", 400, ""),
    Post("rank too low", columns(count=[1, 2]), 400, "`count`: int64 [?, ?] is expected. Received: shape [2]"),
    Post("rank too high", {"inputs": [[1]]}, 400, "`x`: float32 [?] is expected. Received: shape [1, 1]"),
    Post("far too many axes", {"inputs": eval("[" * 70 + "]" * 70)}, 400, "`x`"),
    Post("scalar", {"inputs": 1}, 400, "`x`: float32 [?] is expected. Received: shape []"),
    Post(
        "lists of unequal length", columns(count=[[1], [1, 2]]), 400, "`count`: int64 [?, ?], in lists of equal length"
    ),
    Post("lists beside numbers", columns(count=[[1], 2]), 400, "`count`: int64 [?, ?], in lists of equal length"),
    Post("rows of unequal length", rows(count=[1, 2]), 400, "`count`"),
    Post("other fixed size", columns(pair=[[1], [2]]), 400, "`pair`: float32 [?, 2]"),
    Post("other number of rows", columns(flag=[True]), 400, "`count` and `flag`"),
    Post("base64", columns(name=[{"b64": "YQ=="}, {"b64": "YQ"}]), 200),
    Post("no base64", columns(name=["a", {"b64": "Y*=="}]), 400, "`name`[1]"),
    Post("cut base64", columns(name=["a", {"b64": "Y"}]), 400, "`name`[1]"),
    Post("base64 is no string", columns(name=["a", {"b64": 1}]), 400, "`name`[1]"),
    Post("more than base64", columns(name=["a", {"b64": "YQ==", "a": 1}]), 400, "`name`[1]"),
    Post("half a surrogate pair", '{"signature_name": "gate", "inputs": ["\\ud800"]}', 400, "`path`[0]"),
    Post("string at its longest", columns(name=["x" * MOST_STRING, ""]), 200),
    Post("string too long", columns(name=["x" * (MOST_STRING + 1), ""]), 400, "`name`: strings of at most"),
    Post(
        "bytes count, not letters", columns(name=["ä" * (MOST_STRING // 2 + 1), ""]), 400, "`name`: strings of at most"
    ),
    Post(
        "beyond the model's own limit",
        {"signature_name": "limited", "inputs": [[1, 2, 3, 4]]},
        400,
        "at most 3 candidates",
    ),
    Post(
        "outputs of other sizes in rows", {"signature_name": "uneven", "instances": [1, 2]}, 400, "instances: outputs"
    ),
    Post("outputs of other sizes", {"signature_name": "uneven", "inputs": [1, 2]}, 200),
    Post("unknown model", {"inputs": [1]}, 404, "Latest(other)", "/v1/models/other:predict"),
    Post("unknown version", {"inputs": [1]}, 404, f"Specific({NAME}, 2)", f"/v1/models/{NAME}/versions/2:predict"),
    Post(
        "version beyond 64 bits",
        {"inputs": [1]},
        400,
        "Failed to convert version",
        f"/v1/models/{NAME}/versions/{2**63}:predict",
    ),
    Post(
        "version of 5,000 digits",
        {"inputs": [1]},
        400,
        "Failed to convert version",
        f"/v1/models/{NAME}/versions/{'9' * 5000}:predict",
    ),
    Post("version is no number", {"inputs": [1]}, 400, "Malformed request", f"/v1/models/{NAME}/versions/x:predict"),
    Post("unknown label", {"inputs": [1]}, 400, "nobody", f"/v1/models/{NAME}/labels/nobody:predict"),
    Post("unknown method", {"inputs": [1]}, 400, "Malformed request", f"/v1/models/{NAME}:classify"),
    Post("wrong verb", None, 400, "Malformed request", PREDICT, "GET"),
    Post("another wrong verb", {"inputs": [1]}, 400, "Malformed request", PREDICT, "DELETE"),
    Post("unknown path", None, 404, "Not found", "/other", "GET"),
    Post("out of the folder", None, 400, "Malformed request", "/v1/models/..%2f..%2fetc%2fpasswd", "GET"),
    Post("status of no model", None, 404, "other", "/v1/models/other", "GET"),
    Post("status of no version", None, 404, "version 7", f"/v1/models/{NAME}/versions/7", "GET"),
    Post("metadata of no model", None, 404, "other", "/v1/models/other/metadata", "GET"),
    Post(
        "timeout is no number", {"inputs": [1]}, 400, "x-request-timeout-ms", headers={"X-Request-Timeout-Ms": "soon"}
    ),
    Post("timeout is negative", {"inputs": [1]}, 400, "x-request-timeout-ms", headers={"X-Request-Timeout-Ms": "-1"}),
    Post("no time at all", {"inputs": [1]}, 504, "deadline", headers={"X-Request-Timeout-Ms": "0"}),
]


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=SECONDS) as http:
        yield http


@pytest.mark.parametrize("post", POSTS, ids=[post.name for post in POSTS])
def test_rest(http, post):
    body = post.body if isinstance(post.body, (bytes, str, type(None))) else json.dumps(post.body)
    answer = http.request(post.method, post.path, content=body, headers=post.headers)
    assert answer.status_code == post.code, answer.text
    if post.code != 200:
        assert list(answer.json()) == ["error"] and post.told in answer.json()["error"]


# === What no table has ===


def test_a_body_in_chunks_is_limited_too(http):
    parts = [b" " * 1000] * 21
    assert http.post(PREDICT, content=iter(parts)).status_code == 413
    assert http.post(PREDICT, content=iter([b'{"inputs"', b": [1]}"])).status_code == 200


def test_a_long_name_makes_no_long_message(channel):
    name = "ä" * 5000
    for message in (
        request(model=name),
        request(name),
        changed(request(x=floats(1)), lambda m: m.inputs[name].Clear()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(
                message.SerializeToString(), timeout=SECONDS
            )
        assert caught.value.code() in (INVALID, NOT_FOUND, PRECONDITION) and len(caught.value.details()) < 700


def test_the_server_goes_on_after_all_of_them(server, http):
    page = http.get("/monitoring/prometheus/metrics").text
    assert 'code="INTERNAL"' not in page and 'code="UNKNOWN"' not in page
    assert http.post(PREDICT, json={"inputs": [1]}).status_code == 200


def test_some_hundred_mutated_requests(server):
    assert fuzz(server, requests=400, seed=1) == []
