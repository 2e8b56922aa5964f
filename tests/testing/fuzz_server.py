"""Mutated requests against a running server: `python -m tests.testing.fuzz_server`.

Each answer must come in time and have a cause: no INTERNAL or UNKNOWN, no 5xx but 503 and 504, and good requests are
still answered in between.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import grpc
import httpx
import numpy as np
from tensorflow_serving.apis import predict_pb2

from serving.server.model_server import ModelServer
from tests.testing.tiny_model import NAME, SECONDS, floats, request, serving, write_model

WITHOUT_CAUSE = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # there was time enough: the server hangs
}
TOKENS = [
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b"1e400",
    b"-0",
    b"[]",
    b"{}",
    b'{"b64":"/w=="}',
    b'"\\ud800"',
    b"9" * 30,
]
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def seeds() -> tuple[list[Any], list[dict[str, Any]]]:
    """Good requests to start from, as messages and as JSON."""
    names = np.array([b"a", b"b"], object)
    typed = {"name": names, "count": np.ones((2, 3), np.int64), "pair": floats([1, 2], [3, 4]), "flag": [True, False]}
    whole = {"small": np.ones(2, np.int32), "tiny": np.ones(2, np.uint8)}
    messages = [
        request(x=floats(1, 2, 3)),
        request("typed", **typed),
        request("one", x=floats([1, 2, 3])),
        request("limited", x=floats([1, 2])),
        request("whole", **whole),
    ]
    bodies: list[dict[str, Any]] = []
    for signature, columns in [
        ("serving_default", {"x": [1.5, 2, float("nan")]}),
        (
            "typed",
            {"name": ["a", {"b64": "YQ=="}], "count": [[1], [2]], "pair": [[1, 2], [3, 4]], "flag": [True, False]},
        ),
        ("limited", {"x": [[1, 2]]}),
        ("whole", {"small": [1], "tiny": [2], "half": [0.5]}),
    ]:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        bodies += [{"signature_name": signature, "inputs": columns}, {"signature_name": signature, "instances": rows}]
    return messages, bodies


def mutated_bytes(random_: random.Random, content: bytes) -> bytes:
    """A few bytes flipped, cut, doubled or put in."""
    mutated = bytearray(content)
    for _ in range(random_.randint(1, 6)):
        place = random_.randrange(len(mutated) + 1)
        kind = random_.randrange(5)
        if kind == 0 and place < len(mutated):
            mutated[place] = random_.randrange(256)
        elif kind == 1:
            del mutated[place : place + random_.randint(1, 8)]
        elif kind == 2:
            mutated[place:place] = mutated[place : place + random_.randint(1, 16)]
        elif kind == 3:
            mutated[place:place] = random_.choice(TOKENS)
        else:
            del mutated[place:]
    return bytes(mutated)


def mutated_message(random_: random.Random, message: Any) -> bytes:
    """A message whose tensors are changed as a faulty client would, or whose bytes are broken."""
    mutated = predict_pb2.PredictRequest()
    mutated.CopyFrom(message)
    if random_.random() < 0.4:
        return mutated_bytes(random_, mutated.SerializeToString())
    for _ in range(random_.randint(1, 3)):
        name = random_.choice([*mutated.inputs, "x", "new"])
        tensor = mutated.inputs[name]
        kind = random_.randrange(9)
        if kind == 0:
            tensor.dtype = random_.choice([0, 1, 2, 3, 4, 6, 7, 9, 10, 14, 19, 20, 21, 23, 99, 101, 2**31 - 1])
        elif kind == 1:
            tensor.tensor_shape.dim.add(size=random_.choice([-2, -1, 0, 1, 2, 2**20, 2**40, 2**62]))
        elif kind == 2 and tensor.tensor_shape.dim:
            random_.choice(tensor.tensor_shape.dim).size = random_.choice([-(2**63), -1, 0, 1, 3, 2**31, 2**63 - 1])
        elif kind == 3:
            tensor.tensor_content = random_.randbytes(random_.choice([0, 1, 4, 8, 12, 24, 48]))
        elif kind == 4:
            tensor.float_val.extend([random_.choice([0.0, float("nan"), 1e38])] * random_.randrange(5))
        elif kind == 5:
            tensor.int_val.extend([random_.choice([0, -1, 256, 2**31 - 1])] * random_.randrange(5))
        elif kind == 6:
            tensor.string_val.extend([random_.randbytes(random_.randrange(9))] * random_.randrange(5))
        elif kind == 7:
            tensor.tensor_shape.unknown_rank = True
        else:
            del mutated.inputs[name]
    if random_.random() < 0.2:
        mutated.output_filter.append(random_.choice(["y", "sum", "", "z"]))
    if random_.random() < 0.1:
        mutated.model_spec.version.value = random_.choice([0, 1, 2, -1, 2**63 - 1])
    return mutated.SerializeToString()


def mutated_json(random_: random.Random, body: dict[str, Any]) -> bytes:
    """A body with some of its values replaced, or whose bytes are broken."""
    if random_.random() < 0.4:
        return mutated_bytes(random_, json.dumps(body).encode())
    values = [0, -1, 2**31, 2**63, 10**400, 1.5, 1e39, float("nan"), "", "ä", True, None, [], [[]], {}, {"b64": "?"}]

    def replaced(value: Any) -> Any:
        if random_.random() < 0.15:
            return random_.choice(values)
        if isinstance(value, dict):
            return {key if random_.random() < 0.95 else key + "_": replaced(part) for key, part in value.items()}
        if isinstance(value, list):
            parts = [replaced(part) for part in value]
            return parts + parts[: random_.randrange(2)] if random_.random() < 0.2 else parts
        return value

    return json.dumps(replaced(body)).encode()


def fuzz(server: ModelServer, requests: int, seed: int) -> list[str]:
    """Sends mutated requests.

    Args:
        server: ModelServer. Serves a tiny model.
        requests: int.
        seed: int.

    Returns:
        What was answered without a cause, with the request.
    """
    random_, faults = random.Random(seed), []
    messages, bodies = seeds()
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=SECONDS) as http,
    ):
        predict = channel.unary_unary(PREDICT)
        for number in range(requests):
            if number % 2:
                body = mutated_message(random_, random_.choice(messages))
                try:
                    predict(body, timeout=SECONDS)
                except grpc.RpcError as error:
                    if error.code() in WITHOUT_CAUSE or not error.details():
                        faults.append(f"{error.code()} {error.details()}: {base64.b64encode(body).decode()}")
            else:
                body = mutated_json(random_, random_.choice(bodies))
                try:
                    answer = http.post(f"/v1/models/{NAME}:predict", content=body)
                    if answer.status_code >= 500 or (answer.status_code != 200 and not answer.json()["error"]):
                        faults.append(f"{answer.status_code} {answer.text}: {body!r}")
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    faults.append(f"{error!r}: {body!r}")
            if number % 100 == 0:
                predict(messages[0].SerializeToString(), timeout=SECONDS)
    return faults


def main() -> int:
    """Sends 10,000 mutated requests to a server of its own.

    Returns:
        0, or 1 when one was answered without a cause.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), 1)
        with serving(Path(folder)) as server:
            faults = fuzz(server, arguments.requests, arguments.seed)
            with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as http:
                page = http.get("/monitoring/prometheus/metrics").text
    print("\n".join(line for line in page.splitlines() if line.startswith("serving_requests_total")))
    print("\n".join(faults) or f"{arguments.requests:,} mutated requests, each answered with a cause.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
