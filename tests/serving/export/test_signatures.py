"""No skew: every way to a score gives the Trainer's score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.export.exporter import load_exported_spec, newest_version
from tests.testing.raw_requests import constants, raw_inputs, request_examples
from transform.errors import DataError
from transform.features import request_example
from transform.features.batching import request_batches
from transform.features.request_example import sequence_key

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
BATCH = 7  # does not divide the number of requests, and pads


@pytest.fixture(scope="module", params=["small_plain", "small_aggregates"])
def small(request):
    """Every test is run without aggregate features and with them."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def exported(request, small):
    return request.getfixturevalue("served_aggregates" if small.spec.aggregates else "served")


@pytest.fixture(scope="module")
def signatures(exported):
    return {name: _in_numpy(function) for name, function in exported.loaded.signatures.items()}


def _in_numpy(function):
    return lambda **inputs: {name: tensor.numpy() for name, tensor in function(**inputs).items()}


def _batches(requests: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(requests), BATCH):
        yield requests[start : start + BATCH]


def _is_candidate_input(spec, key: str) -> bool:
    of_candidates = {feature.name for group, feature in spec.feature_groups() if group != "user"}
    return key in of_candidates | {request_example.CANDIDATE_COUNT}


def _rank(small, signatures, batch, extra_padding=0):
    raw = raw_inputs(small.spec, batch, extra_padding)
    return signatures["rank"](**constants(small.spec, raw, raw))


def _rank_in_two_steps(small, signatures, batch):
    raw = raw_inputs(small.spec, batch)
    users = [key for key in raw if not _is_candidate_input(small.spec, key)]
    cache = signatures["encode_user"](**constants(small.spec, raw, users))
    others = constants(small.spec, raw, [key for key in raw if key not in users])
    return signatures["rank_with_user_state"](**{name: tf.constant(value) for name, value in cache.items()}, **others)


def test_every_signature_gives_the_trainers_scores(small, exported, signatures):
    requests = request_examples(small)
    trained = _trainers_probabilities(small, exported.model)
    by_signature: dict[str, dict[str, list]] = {}
    for batch in _batches(requests):
        answers = {
            "serving_default": signatures["serving_default"](examples=tf.constant(batch)),
            "rank": _rank(small, signatures, batch),
            "two steps": _rank_in_two_steps(small, signatures, batch),
        }
        for name, answer in answers.items():
            present = answer["candidate_mask"] > 0
            for key in (*small.spec.task_names, "score"):
                by_signature.setdefault(name, {}).setdefault(key, []).extend(answer[key][present])
                assert not answer[key][~present].any(), "padded candidates score 0"
    for k, task in enumerate(small.spec.task_names):
        assert np.ptp(trained[:, k]) > 100 * TOLERANCE, "scores that differ, or equality says nothing"
        for name, scores in by_signature.items():
            np.testing.assert_allclose(scores[task], trained[:, k], atol=TOLERANCE, err_msg=f"{name} {task}")
    for name in ("rank", "two steps"):
        expected = by_signature["serving_default"]["score"]
        np.testing.assert_allclose(by_signature[name]["score"], expected, atol=TOLERANCE, err_msg=name)


def _trainers_probabilities(small, model) -> np.ndarray:
    """[all candidates, K]: Transform wrote the requests in the order of the raw ones."""
    rows = []
    for batch, _ in request_batches(small.inputs(), small.transformed["test"], 50):
        rows.append(tf.sigmoid(model(batch, training=False)).numpy()[batch["candidates"]["mask"].numpy()])
    return np.concatenate(rows)


def test_score_is_the_formula(small, signatures):
    answer = signatures["serving_default"](examples=tf.constant(request_examples(small)[:20]))
    present = answer["candidate_mask"] > 0
    np.testing.assert_allclose(
        answer["score"][present], (answer["buy"] * answer["save"] ** 0.5)[present], rtol=1e-5, atol=1e-7
    )


def test_padding_of_a_client_changes_nothing(small, signatures):
    batch = request_examples(small)[:9]
    plain, padded = _rank(small, signatures, batch), _rank(small, signatures, batch, extra_padding=3)
    n = plain["score"].shape[1]
    for key, values in plain.items():
        np.testing.assert_allclose(padded[key][:, :n], values, atol=TOLERANCE)
        assert not padded[key][:, n:].any()


def test_context_does_not_depend_on_candidates_or_request_context(small, signatures):
    spec, batch = small.spec, request_examples(small)[:5]
    raw = raw_inputs(spec, batch)
    users = [key for key in raw if not _is_candidate_input(spec, key)]
    cache = signatures["encode_user"](**constants(spec, raw, users))
    assert all(name.startswith("cache_") for name in cache)
    assert all(len(value) == len(batch) for value in cache.values())


def test_users_without_history_and_single_candidates(small, signatures):
    spec = small.spec
    raw = raw_inputs(spec, request_examples(small)[:4])
    for sequence in spec.sequences:
        raw[request_example.length_key(sequence.name)][:] = 0
        for part in (*sequence.features, *sequence.feedback):
            key = sequence_key(sequence.name, part)
            raw[key] = raw[key][:, :0]
    raw[request_example.CANDIDATE_COUNT][:] = 1
    for group, feature in spec.feature_groups():
        if group == "candidate":
            raw[feature.name] = raw[feature.name][:, :1]
    answer = signatures["rank"](**constants(spec, raw, raw))
    assert answer["score"].shape == (4, 1)
    assert np.isfinite(answer["score"]).all()


def test_a_request_without_candidates_gets_no_scores_and_spoils_no_other(small, signatures):
    requests = request_examples(small)[:3]
    empty = tf.train.Example.FromString(requests[0])
    for group, feature in small.spec.feature_groups():
        if group == "candidate":
            for key in (feature.name, request_example.length_key(feature.name)):
                empty.features.feature.pop(key, None)
    empty.features.feature[request_example.CANDIDATE_COUNT].int64_list.value[0] = 0
    alone = signatures["serving_default"](examples=tf.constant([empty.SerializeToString()]))
    assert not alone["candidate_mask"].any() and not alone["score"].any()
    beside = signatures["serving_default"](examples=tf.constant([requests[1], empty.SerializeToString(), requests[2]]))
    whole = signatures["serving_default"](examples=tf.constant([requests[1], requests[2]]))
    assert not beside["candidate_mask"][1].any()
    for key, values in whole.items():
        np.testing.assert_allclose(beside[key][[0, 2]], values, atol=TOLERANCE)


def test_unknown_and_missing_values_are_scored(small, signatures):
    request = tf.train.Example.FromString(request_examples(small)[0])
    request.features.feature["user"].bytes_list.value[0] = b"never seen"
    request.features.feature["age"].float_list.value[0] = float("nan")
    del request.features.feature["device"]
    answer = signatures["serving_default"](examples=tf.constant([request.SerializeToString()]))
    assert np.isfinite(answer["score"]).all()


def test_transform_features_are_transforms(small, signatures):
    transformed = next(iter(request_batches(small.inputs(), small.transformed["test"], 10_000)))[0]
    served = signatures["transform_features"](examples=tf.constant(request_examples(small)))
    expected = {**transformed["user"], **transformed["context"]}
    for sequence, parts in transformed["sequences"].items():
        expected.update({sequence_key(sequence, part): values for part, values in parts.items()})
    expected.update({name: values for name, values in transformed["candidates"].items() if name != "mask"})
    expected["candidate_mask"] = transformed["candidates"]["mask"]
    assert set(served) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(served[key], values.numpy(), atol=TOLERANCE, err_msg=key)


def test_export_brings_its_spec_and_leaves_nothing_half_written(small, exported):
    path = Path(exported.path)
    assert load_exported_spec(str(path)) == exported.spec
    assert [entry.name for entry in path.parent.iterdir()] == ["1"]
    assert newest_version(str(path.parent)) == str(path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="exported ranking model"):
        load_exported_spec(str(tmp_path))
