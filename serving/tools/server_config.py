"""TF Serving's configuration files, beside the folders of the models that they are about.

<folder>/models.config             which models and versions to serve, and the labels `stable` and `canary`
<folder>/batching_parameters.txt   for --enable_batching
<folder>/monitoring.config         Prometheus
<folder>/<model>/<version>/        SavedModels
"""

from __future__ import annotations

import os
import uuid

import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.export.exporter import version_folders
from transform.errors import DataError

MODELS_CONFIG = "models.config"
BATCHING_PARAMETERS = "batching_parameters.txt"
MONITORING_CONFIG = "monitoring.config"
STABLE, CANARY = "stable", "canary"
SERVED_FROM = "/models"  # where a container has the folder
VERSIONS_LOADED = 3

_MODELS = f"""\
# For tensorflow_model_server --model_config_file. Written at each push: the label `{CANARY}` is the newest version's,
# `{STABLE}` that of the one before it. A third stays loaded until the server has read whose they are now. To hold a
# version, write `specific {{ versions: ... }}` for `latest`: a push leaves a model with such a policy alone.
"""
_BATCHING = """\
# For tensorflow_model_server --enable_batching --batching_parameters_file. Written once, yours to change. What clients
# have to keep to then: docs/serving.md, "Batching".
max_batch_size { value: 32 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 4 }
pad_variable_length_inputs: true
"""
_MONITORING = """\
# For tensorflow_model_server --monitoring_config_file. Written once, yours to change.
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""


def write_server_config(model_folder: str) -> None:
    """Writes what TF Serving has to know of a model, once a version of it is in its folder.

    Other models in `models.config` stay as they are. The other two files are written where there are none.

    Args:
        model_folder: str. The folder of the model's versions; its name is the model's.

    Raises:
        DataError: when there is a `models.config` that TF Serving could not read either.
    """
    folder, name = os.path.split(model_folder.rstrip("/"))
    path = os.path.join(folder, MODELS_CONFIG)
    config = _read(path)
    found = [model for model in config.model_config_list.config if model.name == name]
    model = found[0] if found else config.model_config_list.config.add(name=name, model_platform="tensorflow")
    if not found:
        model.base_path = f"{SERVED_FROM}/{name}"
        model.model_version_policy.latest.num_versions = VERSIONS_LOADED
    if model.model_version_policy.WhichOneof("policy_choice") == "latest":
        versions = version_folders(model_folder)
        model.version_labels[CANARY] = int(versions[-1])
        model.version_labels[STABLE] = int(versions[-2:][0])
    _write(path, _MODELS + text_format.MessageToString(config))
    for file, text in ((BATCHING_PARAMETERS, _BATCHING), (MONITORING_CONFIG, _MONITORING)):
        if not tf.io.gfile.exists(os.path.join(folder, file)):
            _write(os.path.join(folder, file), text)


def _read(path: str) -> model_server_config_pb2.ModelServerConfig:
    config = model_server_config_pb2.ModelServerConfig()
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            text = file.read()
        try:
            text_format.Parse(text, config)
        except text_format.ParseError as error:
            raise DataError(
                f"{path}: a ModelServerConfig in text form is expected. Received: {error}. Correct it, or remove it: "
                "a push writes it anew."
            ) from error
    return config


def _write(path: str, text: str) -> None:
    """Writes a file that appears whole or not at all, unless it says so already."""
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            if file.read() == text:
                return
    unfinished = f"{path}.unfinished-{uuid.uuid4().hex[:8]}"
    try:
        with tf.io.gfile.GFile(unfinished, "w") as file:
            file.write(text)
        tf.io.gfile.rename(unfinished, path, overwrite=True)
    except Exception:  # a full disk, say
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.remove(unfinished)
        raise
