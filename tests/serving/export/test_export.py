"""What the exporter writes beside the model, and how a user state travels."""

import os
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.export.model_files import ASSETS_EXTRA, WARMUP_FILE
from serving.export.raw_inputs import raw_values
from serving.export.signatures import RankingSignatures
from serving.export.warmup_requests import warmup_requests
from serving.export.wire_format import pack_user_state, unpack_user_state
from tests.testing.far_from_start import far_from_start
from tests.testing.raw_requests import call, in_two_steps, request_examples
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
    assert requests["encode_user"]["seen_length"] == [12] and requests["encode_user"]["bought_length"] == [5]
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
    cache = call(signatures["encode_user"], raw)
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
    ((batch, _),) = request_batches(small.inputs(), small.transformed["test"], 10_000)
    cache = served.model.encode_user(batch["user"], batch["sequences"], training=False)
    packed = pack_user_state(cache, dtype, served.model.full_precision_state)
    assert packed["user"].dtype == dtype
    masks = frozenset(name for name, tensor in cache.items() if tensor.dtype == tf.bool)
    again = unpack_user_state(packed, masks)
    assert again["mask"].dtype == tf.bool and (again["mask"].numpy() == cache["mask"].numpy()).all()
    scores = [
        tf.sigmoid(served.model.score_candidates(c, batch["context"], batch["candidates"])).numpy()
        for c in (cache, again)
    ]
    difference = np.abs(scores[0] - scores[1]).max()
    assert difference <= most and (difference > 0) == (dtype != "float32")
