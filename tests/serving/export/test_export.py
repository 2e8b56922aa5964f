"""What the exporter writes beside the model, and how a context's cache travels."""

import os
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.export.model_files import ASSETS_EXTRA, WARMUP_FILE
from serving.export.raw_inputs import raw_values
from serving.export.signatures import RankingSignatures
from serving.export.warmup_requests import warmup_requests
from serving.export.wire_format import pack_cache, unpack_cache
from serving.tools.server_config import BATCHING_PARAMETERS, MODELS_CONFIG, MONITORING_CONFIG, write_server_config
from tests.testing.far_from_start import far_from_start
from tests.testing.raw_requests import call, in_two_steps, request_examples
from transform.errors import DataError
from transform.features import request_example
from transform.features.batching import request_batches
from transform.features.transform_graph import TransformGraph
from transform.spec.model_sections import Serving

# === Warm-up requests ===


def logged(records) -> list[tuple[str, dict[str, np.ndarray]]]:
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    return [
        (r.model_spec.signature_name, {name: tf.make_ndarray(value) for name, value in r.inputs.items()})
        for r in requests
    ]


def test_warm_up_requests_are_real_requests_of_the_asked_sizes(small, served):
    """They are run in the contract's test."""
    path = os.path.join(served.path, ASSETS_EXTRA, WARMUP_FILE)
    requests = logged(record.numpy() for record in tf.data.TFRecordDataset(path))
    signatures = {name for name, _ in requests}
    assert Counter(name for name, _ in requests) == {name: 2 for name in signatures}, "two sizes, of two users"
    decoded = [request_example.decode(record) for record in request_examples(small)[:2]]
    for _, inputs in requests:
        if "candidate_count" in inputs:
            assert inputs["candidate_count"][0] in (1, 7) and inputs["item"].shape == (1, inputs["candidate_count"][0])
    for (_, inputs), request, size in zip([r for r in requests if r[0] == "rank"], decoded, (1, 7), strict=True):
        assert inputs["user"][0].decode() == request["user"][0]
        n = len(request["item"])
        assert [item.decode() for item in inputs["item"][0]] == [request["item"][k % n] for k in range(size)]
        assert (inputs["tags"][..., 0] == b"").all(), "sets begin with an empty member"
        lengths = (inputs["tags"] != b"").sum(axis=2)[0]
        assert lengths.tolist() == [request["tags_length"][k % n] for k in range(size)]


def test_without_requests_they_are_made_up_with_full_sequences_and_always_the_same(half):
    spec, signatures = half
    records = list(warmup_requests(spec, signatures))
    assert records == list(warmup_requests(spec, signatures))
    requests = dict(logged(records))
    assert set(requests) == set(signatures)
    assert requests["rank"]["item"].shape == (1, 3)
    assert requests["encode_context"]["seen_length"] == [12] and requests["encode_context"]["bought_length"] == [5]
    for name, inputs in requests.items():
        answer = call(signatures[name], inputs)
        assert all(np.isfinite(values).all() for values in answer.values() if values.dtype.kind == "f")


# === The cache ===


@pytest.fixture(scope="module")
def half(small):
    """A spec whose cache travels in float16, and its signatures."""
    serving = Serving(cache_dtype="float16", max_candidates=20, warmup_candidates=[3])
    spec = small.spec.model_copy(update={"serving": serving})
    preprocess = TransformGraph(small.transform_output.transform_savedmodel_dir)
    module = RankingSignatures(spec, far_from_start(small, spec), preprocess)
    return spec, module.all()


def test_a_cache_in_float16_is_scored_in_float32(small, half):
    _, signatures = half
    raw = raw_values(small.spec, request_example.decode(request_examples(small)[0]))
    cache = call(signatures["encode_context"], raw)
    assert {name: values.dtype.name for name, values in cache.items()} == {
        "cache_user": "float16",
        "cache_mask": "int32",
        "cache_keys_0": "float16",
        "cache_values_0": "float16",
        "cache_task_read": "float32",  # logarithms are in it
    }
    whole, two_steps = call(signatures["rank"], raw), in_two_steps(signatures, raw)
    assert {values.dtype for values in two_steps.values()} == {np.dtype("float32")}
    difference = np.abs(whole["buy"] - two_steps["buy"]).max()
    assert 1e-7 < difference < 2e-3


@pytest.mark.parametrize("dtype, most", [("float32", 0.0), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_what_a_short_cache_costs(small, served, dtype, most):
    ((batch, _),) = request_batches(small.spec, small.transformed["test"], 10_000)
    cache = served.model.encode_context(batch["user"], batch["sequences"], training=False)
    packed = pack_cache(cache, dtype, served.model.exact_cache)
    assert packed["user"].dtype == dtype
    masks = frozenset(name for name, tensor in cache.items() if tensor.dtype == tf.bool)
    again = unpack_cache(packed, masks)
    assert again["mask"].dtype == tf.bool and (again["mask"].numpy() == cache["mask"].numpy()).all()
    scores = [
        tf.sigmoid(served.model.score_candidates(c, batch["context"], batch["candidates"])).numpy()
        for c in (cache, again)
    ]
    difference = np.abs(scores[0] - scores[1]).max()
    assert difference <= most and (difference > 0) == (dtype != "float32")


# === TensorFlow Serving's configuration ===


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
