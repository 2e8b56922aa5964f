"""Replaying the requests that a model brings along, so that the first user does not wait."""

from __future__ import annotations

import os

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.export.model_files import ASSETS_EXTRA, WARMUP_FILE
from serving.server.loaded_version import LoadedVersion
from serving.server.options import ServerOptions
from serving.server.tensors import inputs_of

MOST_RECORDS = 1000  # TF Serving's limit


def warm_up(version: LoadedVersion, path: str, options: ServerOptions) -> int:
    """Replays a version's warm-up requests.

    Args:
        version: LoadedVersion.
        path: str. Its folder.
        options: ServerOptions.

    Returns:
        How many requests were replayed.

    Raises:
        Exception: when one of them can't be read or is refused: such a version is not served, as in TF Serving.
    """
    file = os.path.join(path, ASSETS_EXTRA, WARMUP_FILE)
    count = 0
    if os.path.isfile(file):
        for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind != "predict_log" or count == MOST_RECORDS:
                raise ValueError(f"{file}: at most {MOST_RECORDS} predict_log are expected. Received: {kind}.")
            request = log.predict_log.request
            signature = version.signature(request.model_spec.signature_name)
            version.run(signature, inputs_of(request, signature, options))
            count += 1
    version.warm()
    return count
