"""TensorFlow Serving's contract: stock TensorFlow, in a process of its own, runs all that was exported.

As that server does, it loads the SavedModel into a TF1 session, without any of this project's code or operations, and
answers requests that are protos of its API.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.export.model_files import ASSETS_EXTRA, WARMUP_FILE
from serving.export.raw_inputs import raw_values
from tests.testing.raw_requests import call, in_parts, in_two_steps, request_examples
from transform.features import request_example
from transform.features.batching import request_batches

TOLERANCE = 1e-5
PROGRAM = """
import sys
for package in ("transform", "trainer", "serving", "tfx_pipeline", "tensorflow_transform"):
    sys.modules[package] = None  # an import of it fails
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
model, asked, answered, *warm_ups = sys.argv[1:]
with tf.compat.v1.Session(graph=tf.Graph()) as session, tf.io.TFRecordWriter(answered) as file:
    signatures = tf.compat.v1.saved_model.loader.load(session, ["serve"], model).signature_def
    for path in [*warm_ups, asked]:
        for record in tf.compat.v1.io.tf_record_iterator(path):
            whole = prediction_log_pb2.PredictionLog.FromString(record)
            log = whole.predict_log
            signature = signatures[log.request.model_spec.signature_name]
            inputs = {signature.inputs[name].name: tf.make_ndarray(value) for name, value in log.request.inputs.items()}
            outputs = {name: tensor.name for name, tensor in signature.outputs.items()}
            try:
                for name, value in session.run(outputs, inputs).items():
                    log.response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            except tf.errors.InvalidArgumentError as error:
                log.response.model_spec.name = error.message
            if path == asked:
                file.write(whole.SerializeToString())
            else:
                assert not log.response.model_spec.name, log.response.model_spec.name
                print(log.request.model_spec.signature_name)
"""


class Recorded:
    """Signatures that keep what they were asked, and what they answered."""

    def __init__(self, signatures):
        self._signatures = signatures
        self.calls = []

    def __getitem__(self, name):
        function = self._signatures[name]

        def recorded(**inputs):
            outputs = function(**inputs)
            self.calls.append((name, inputs, outputs))
            return outputs

        recorded.structured_input_signature = function.structured_input_signature
        return recorded


def asked_elsewhere(path: str, calls: list, folder) -> tuple[list[predict_pb2.PredictResponse], list[str]]:
    """The answers of stock TensorFlow, and the signatures that the model's warm-up requests went to."""
    asked, answered = str(folder / "asked"), str(folder / "answered")
    with tf.io.TFRecordWriter(asked) as file:
        for signature, inputs, *_ in calls:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.signature_name = signature
            for name, value in inputs.items():
                log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            file.write(log.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, asked, answered, os.path.join(path, ASSETS_EXTRA, WARMUP_FILE)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logs = [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(answered)]
    return [log.predict_log.response for log in logs], done.stdout.split()


def test_stock_tensorflow_answers_as_the_trainer_scores(small, served, tmp_path):
    spec, records = served.spec, request_examples(small)
    recorded = Recorded(served.loaded.signatures)
    call(recorded["serving_default"], {"examples": np.array(records, object)})
    call(recorded["transform_features"], {"examples": np.array(records[:3], object)})
    for record in records[:3]:
        raw = raw_values(spec, request_example.decode(record))
        call(recorded["rank"], raw)
        in_two_steps(recorded, raw)
        in_parts(spec, recorded, raw, size=2, pad=True)
    n = raw["price"].shape[1]
    wrong = [
        ({"price": raw["price"][:, 1:]}, "price: as many candidates"),
        ({"seen_length": np.array([-1])}, "seen_length: a number from 0 to"),
        ({"candidate_count": np.array([n + 1])}, "candidate_count: a number from 0 to"),
    ]
    refused = [("rank", {**raw, **change}) for change, _ in wrong]
    answers, warmed_up = asked_elsewhere(served.path, [*recorded.calls, *refused], tmp_path)

    assert {name for name, *_ in recorded.calls} == set(warmed_up) == set(served.loaded.signatures)
    for (signature, _, expected), answer in zip(recorded.calls, answers[: -len(wrong)], strict=True):
        assert set(answer.outputs) == set(expected)
        for name, values in expected.items():
            found = tf.make_ndarray(answer.outputs[name])
            np.testing.assert_allclose(found, values.numpy(), atol=TOLERANCE, err_msg=f"{signature} {name}")
    for (_, said), answer in zip(wrong, answers[-len(wrong) :], strict=True):
        assert f"assertion failed: [{said}" in answer.model_spec.name

    ((batch, _),) = request_batches(small.inputs(), small.transformed["test"], len(records))
    trained = tf.sigmoid(served.model(batch, training=False)).numpy()
    present = batch["candidates"]["mask"].numpy()
    for k, task in enumerate(spec.task_names):
        scores = tf.make_ndarray(answers[0].outputs[task])
        np.testing.assert_allclose(scores[present], trained[present][:, k], atol=TOLERANCE, err_msg=task)
