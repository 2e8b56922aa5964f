"""TensorFlow Serving's configuration, as a push writes it."""

import os

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.tools.server_config import BATCHING_PARAMETERS, MODELS_CONFIG, MONITORING_CONFIG, write_server_config
from transform.errors import DataError


def push(folder, *versions: int) -> str:
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
    write_server_config(str(folder))
    return os.path.join(folder.parent, MODELS_CONFIG)


def models(path: str) -> dict:
    config = text_format.Parse(open(path).read(), model_server_config_pb2.ModelServerConfig())
    return {model.name: model for model in config.model_config_list.config}


def test_labels_follow_the_versions(tmp_path):
    path = push(tmp_path / "ranker", 9)
    ranker = models(path)["ranker"]
    assert (ranker.base_path, ranker.model_platform) == ("/models/ranker", "tensorflow")
    assert dict(ranker.version_labels) == {"stable": 9, "canary": 9}
    push(tmp_path / "ranker", 10)
    assert dict(models(path)["ranker"].version_labels) == {"stable": 9, "canary": 10}
    push(tmp_path / "ranker", 200)
    ranker = models(path)["ranker"]
    assert dict(ranker.version_labels) == {"stable": 10, "canary": 200}
    assert ranker.model_version_policy.latest.num_versions == 3, "9, to which `stable` may still be going, is loaded"
    names = {MODELS_CONFIG, BATCHING_PARAMETERS, MONITORING_CONFIG, "ranker"}
    assert set(os.listdir(tmp_path)) == names, "nothing half written"


def test_what_people_wrote_stays(tmp_path):
    path = push(tmp_path / "ranker", 1, 2)
    with open(path) as file:
        text = file.read()
    text = text.replace("/models/ranker", "gs://bucket/ranker").replace("num_versions: 3", "num_versions: 5")
    with open(path, "w") as file:
        file.write(text)
    (tmp_path / BATCHING_PARAMETERS).write_text("max_batch_size { value: 8 }\n")
    push(tmp_path / "ranker", 3)
    push(tmp_path / "other", 7)
    found = models(path)
    assert found["ranker"].base_path == "gs://bucket/ranker"
    assert found["ranker"].model_version_policy.latest.num_versions == 5
    assert dict(found["ranker"].version_labels) == {"stable": 2, "canary": 3}
    assert dict(found["other"].version_labels) == {"stable": 7, "canary": 7}
    assert (tmp_path / BATCHING_PARAMETERS).read_text() == "max_batch_size { value: 8 }\n"

    held = open(path).read().replace("latest {\n        num_versions: 5", "specific {\n        versions: 2")
    with open(path, "w") as file:
        file.write(held)
    push(tmp_path / "ranker", 4)
    ranker = models(path)["ranker"]
    assert list(ranker.model_version_policy.specific.versions) == [2]
    assert dict(ranker.version_labels) == {"stable": 2, "canary": 3}, "a version that is held is held"


def test_a_configuration_that_is_none_is_refused_and_kept(tmp_path):
    (tmp_path / MODELS_CONFIG).write_text("models: [ranker]")
    with pytest.raises(DataError, match="models.config: a ModelServerConfig in text form is expected"):
        push(tmp_path / "ranker", 1)
    assert (tmp_path / MODELS_CONFIG).read_text() == "models: [ranker]"


# What TensorFlow Serving's sources have; the package of its API has these two messages not.
PROTOS = """
name: "configs.proto"
message_type { name: "Number" field { name: "value" number: 1 type: TYPE_INT64 } }
message_type {
  name: "BatchingParameters"
  field { name: "max_batch_size" number: 1 type: TYPE_MESSAGE type_name: ".Number" }
  field { name: "batch_timeout_micros" number: 2 type: TYPE_MESSAGE type_name: ".Number" }
  field { name: "max_enqueued_batches" number: 3 type: TYPE_MESSAGE type_name: ".Number" }
  field { name: "num_batch_threads" number: 4 type: TYPE_MESSAGE type_name: ".Number" }
  field { name: "allowed_batch_sizes" number: 6 type: TYPE_INT64 label: LABEL_REPEATED }
  field { name: "pad_variable_length_inputs" number: 7 type: TYPE_BOOL }
}
message_type {
  name: "PrometheusConfig"
  field { name: "enable" number: 1 type: TYPE_BOOL }
  field { name: "path" number: 2 type: TYPE_STRING }
}
message_type {
  name: "MonitoringConfig"
  field { name: "prometheus_config" number: 1 type: TYPE_MESSAGE type_name: ".PrometheusConfig" }
}
"""


def test_batching_and_monitoring_are_as_upstream_has_them(tmp_path):
    push(tmp_path / "ranker", 1)
    pool = descriptor_pool.DescriptorPool()
    file = text_format.Parse(PROTOS, descriptor_pb2.FileDescriptorProto())
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    parsed = {}
    for name, message in ((BATCHING_PARAMETERS, "BatchingParameters"), (MONITORING_CONFIG, "MonitoringConfig")):
        descriptor = pool.FindMessageTypeByName(message)
        make = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
        parsed[message] = text_format.Parse((tmp_path / name).read_text(), make(descriptor)())
    assert parsed["BatchingParameters"].pad_variable_length_inputs
    assert parsed["MonitoringConfig"].prometheus_config.enable
