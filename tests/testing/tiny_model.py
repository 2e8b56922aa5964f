"""Tiny SavedModels, for tests where the model doesn't matter, and the requests that fit them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from serving.export.model_files import ASSETS_EXTRA, WARMUP_FILE
from serving.server.model_server import ModelServer
from serving.server.options import ServerOptions

NAME = "tiny"
SECONDS = 60  # how long a test waits for what must come; generous, as machines are slow


class Tiny(tf.Module):
    """Answers with its own version, so that a mixed answer shows."""

    def __init__(self, version: int):
        super().__init__()
        self.version = tf.Variable(version, dtype=tf.int64)  # a variable, so that there are files to be half copied

    def all(self) -> dict:
        def named(function, **specs):
            return tf.function(lambda **inputs: function(**inputs)).get_concrete_function(
                **{name: tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in specs.items()}
            )

        f32, i64, text = tf.float32, tf.int64, tf.string
        return {
            "serving_default": named(self._scaled, x=([None], f32)),
            "typed": named(
                self._typed,
                name=([None], text),
                count=([None, None], i64),
                pair=([None, 2], f32),
                flag=([None], tf.bool),
            ),
            "whole": named(self._whole, small=([None], tf.int32), tiny=([None], tf.uint8), half=([None], tf.bfloat16)),
            "one": named(self._one, x=([1, 3], f32)),
            "limited": named(self._limited, x=([None, None], f32)),
            "gate": named(self._gate, path=([None], text)),
            "uneven": named(self._uneven, x=([None], f32)),
            "number": named(lambda text: {"number": tf.strings.to_number(text)}, text=([None], text)),
        }

    def _scaled(self, x):
        return {"y": x * tf.cast(self.version, tf.float32), "version": tf.fill(tf.shape(x), self.version)}

    def _typed(self, name, count, pair, flag):
        total = tf.reduce_sum(count, axis=1) + tf.cast(flag, tf.int64)
        return {"name": name, "name_bytes": name, "total": total, "pair": pair, "flag": flag}

    def _whole(self, small, tiny, half):
        return {"small": small, "tiny": tiny, "half": half}

    def _one(self, x):
        return {"sum": tf.reduce_sum(x, axis=1)}

    def _limited(self, x):
        tf.debugging.assert_less_equal(tf.shape(x)[1], 3, message="at most 3 candidates")
        return {"sum": tf.reduce_sum(x, axis=1), "x": x}

    def _gate(self, path):
        """Answers when somebody reads the named pipe at `path`."""
        with tf.control_dependencies([tf.io.write_file(path[0], "open")]):
            return {"version": tf.fill(tf.shape(path), self.version)}

    def _uneven(self, x):
        return {"x": x, "sum": tf.reduce_sum(x)[None, None]}


def write_model(base: Path, version: int, records: list[predict_pb2.PredictRequest] | None = None) -> Path:
    """Writes a version beside its place and renames it, as the exporter does. `records` are warm-up requests."""
    module, unfinished = Tiny(version), base / f"{version}.unfinished"
    tf.saved_model.save(module, str(unfinished), signatures=module.all())
    if records is not None:
        (unfinished / ASSETS_EXTRA).mkdir()
        with tf.io.TFRecordWriter(str(unfinished / ASSETS_EXTRA / WARMUP_FILE)) as file:
            for request in records:
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                file.write(log.SerializeToString())
    return unfinished.rename(base / str(version))


def request(signature: str = "", version: int | None = None, label: str = "", model: str = NAME, **inputs):
    """A PredictRequest."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = model, signature
    if version is not None:
        message.model_spec.version.value = version
    if label:
        message.model_spec.version_label = label
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message


def floats(*values) -> np.ndarray:
    """float32, of numbers or of lists of them."""
    return np.array(values, np.float32)


@contextlib.contextmanager
def serving(base: Path, **options) -> Iterator[ModelServer]:
    """A server on free ports."""
    given = {"model_name": NAME, "model_base_path": str(base), "file_system_poll_wait_seconds": 0.05, **options}
    given["tensorflow_inter_op_parallelism"] = -1  # or a request that waits at a gate holds up the others
    with ModelServer(ServerOptions(port=0, rest_api_port=0, **given)) as server:
        yield server


class Client:
    """TF Serving's own stubs."""

    def __init__(self, port: int, channel: grpc.Channel | None = None):
        self.channel = channel or grpc.insecure_channel(f"127.0.0.1:{port}")
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, message, timeout: float = SECONDS) -> tuple[dict[str, np.ndarray], int]:
        """The outputs and the version that gave them."""
        response = self.prediction.Predict(message, timeout=timeout)
        outputs = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
        return outputs, response.model_spec.version.value

    def metadata(self, model: str = NAME):
        message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        message.model_spec.name = model
        return self.prediction.GetModelMetadata(message, timeout=SECONDS)

    def statuses(self, model: str = NAME) -> dict[int, get_model_status_pb2.ModelVersionStatus]:
        message = get_model_status_pb2.GetModelStatusRequest()
        message.model_spec.name = model
        response = self._model.GetModelStatus(message, timeout=SECONDS)
        return {status.version: status for status in response.model_version_status}


class Gate:
    """A named pipe that requests to `gate` wait at.

    Args:
        path: Path. Where there is nothing yet.
    """

    def __init__(self, path: Path):
        os.mkfifo(path)
        self.path = path

    def request(self, **spec):
        """A request that waits here."""
        return request("gate", path=[str(self.path).encode()], **spec)

    def open(self) -> None:
        """Lets one request through, when it comes."""
        with self.path.open("rb") as file:
            assert file.read() == b"open"

    def nobody_waits(self) -> bool:
        """Whether no request has got here. If one has, it is spoilt."""
        with contextlib.closing(os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)) as file:
            return file.read() == b""  # None: somebody is there, but has not written yet


def until(condition: Callable[[], object]) -> None:
    """Waits until something is so."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
