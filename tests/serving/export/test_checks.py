"""Invalid inputs are rejected inside the graph, with a message that names the input."""

import re

import numpy as np
import pytest
import tensorflow as tf

from serving.export.raw_inputs import raw_values
from tests.testing.raw_requests import call, joined_request, part_of, request_examples
from transform.features import request_example

MOST = 40


@pytest.fixture(scope="module")
def signatures(served):
    return served.loaded.signatures


@pytest.fixture(scope="module")
def raw(small, signatures):
    """All that the signatures take of a request of 11 candidates, 12 events seen and up to 5 bought."""
    request = joined_request(small.spec, request_examples(small)[3:9])
    raw = part_of(small.spec, raw_values(small.spec, request), 0, 11)
    assert raw["candidate_count"][0] == 11 and raw["seen_length"][0] == 12
    raw.update(call(signatures["encode_user"], raw))
    return {**raw, **call(signatures["summarize_candidates"], raw)}


def refusal(function, tensors) -> str:
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        call(function, tensors)
    message = re.search(r"assertion failed: (.*)", error.value.message)
    assert message, error.value.message
    return message[1]


def longer(values, by=1):
    return np.concatenate([values, values[:, -by:]], axis=1)


def test_raw_inputs_that_do_not_fit_are_refused(small, signatures, raw):
    cases = [
        ({"candidate_count": np.array([-1])}, "candidate_count: a number from 0 to the size of item", "[11] [-1]"),
        ({"candidate_count": np.array([12])}, "candidate_count: a number from 0 to the size of item", "[11] [12]"),
        ({"price": longer(raw["price"])}, "price: as many candidates as in item are expected", "[11] [12]"),
        ({"tags": longer(raw["tags"])}, "tags: as many candidates as in item are expected", "[11] [12]"),
        ({"device": np.array(["phone"] * 2, object)}, "device: as many requests as in", "[1] [2]"),
    ]
    of_users = [
        ({"seen_length": np.array([-3])}, "seen_length: a number from 0 to the size of seen_item", "[12] [-3]"),
        ({"seen_length": np.array([13])}, "seen_length: a number from 0 to the size of seen_item", "[12] [13]"),
        ({"seen_price": longer(raw["seen_price"])}, "seen_price: as many events as in seen_item", "[12] [13]"),
        ({"income": np.array([1, 2], "float32")}, "income: as many requests as in", "[1] [2]"),
    ]
    candidates = {feature.name for feature in small.spec.candidate_features()}
    many = {name: np.repeat(raw[name], 4, axis=1) for name in candidates}
    too_many = (
        {**many, "candidate_count": np.array([MOST + 1])},
        f"candidate_count: at most {MOST} candidates",
        "[41]",
    )
    allowed = {**raw, **many, "candidate_count": np.array([MOST])}
    for signature in ("rank", "rank_with_user_state", "summarize_candidates"):
        function = signatures[signature]
        for change, said, numbers in [*cases, too_many, *(of_users if signature == "rank" else [])]:
            message = refusal(function, {**raw, **change})
            assert said in message and message.endswith(numbers), (signature, said, message)
        assert call(function, allowed)["candidate_mask"].sum() == MOST
    for change, said, numbers in of_users:
        message = refusal(signatures["encode_user"], {**raw, **change})
        assert said in message and message.endswith(numbers)
    cached = {"cache_user": np.repeat(raw["cache_user"], 2, axis=0)}
    assert "cache_user: as many requests as in" in refusal(signatures["rank_with_user_state"], {**raw, **cached})


def test_parts_that_do_not_fit_are_refused(signatures, raw):
    function = signatures["score_summary"]
    message = refusal(function, {**raw, "candidate_mask": raw["candidate_mask"][:, :-1]})
    assert "state_states: as many candidates as in candidate_mask" in message and message.endswith("[10] [11]")
    name = "summary_log_weight"
    message = refusal(function, {**raw, name: longer(raw[name])})
    assert "as many parts as in" in message and name in message


def test_examples_that_do_not_fit_are_refused(small, signatures):
    request = joined_request(small.spec, request_examples(small)[3:9])
    good = request_example.encode(request).SerializeToString()
    n = request["candidate_count"][0]
    candidates = {feature.name for feature in small.spec.candidate_features()} | {"tags_length"}
    cases = [
        ({"price": request["price"][:-1]}, "price: as many values as candidate_count", f"[{n}] [{n - 1}]"),
        ({"candidate_count": [n + 1]}, "item: as many values as candidate_count", f"[{n + 1}] [{n}]"),
        ({"candidate_count": [-1]}, "item: as many values as candidate_count", f"[-1] [{n}]"),
        ({"candidate_count": []}, "item: as many values as candidate_count", f"[0] [{n}]"),
        ({"tags_length": [*request["tags_length"], 0]}, "tags_length: as many values as candidate_count", ""),
        ({"tags": [*request["tags"], "t1"]}, "tags: as many values as the sum of tags_length", ""),
        ({"seen_brand": request["seen_brand"][1:]}, "seen_brand: as many values as values in seen_item", "[12] [11]"),
        (
            {**{key: request[key] * 4 for key in candidates}, "candidate_count": [n * 4]},
            f"candidate_count: at most {MOST} candidates",
            f"[{n * 4}]",
        ),
    ]
    for signature in ("serving_default", "transform_features"):
        for change, said, numbers in cases:
            bad = request_example.encode({**request, **change}).SerializeToString()
            message = refusal(signatures[signature], {"examples": np.array([good, bad, good], object)})
            assert said in message and message.endswith(numbers), (signature, said, message)
    assert len(call(signatures["serving_default"], {"examples": np.array([], object)})["score"]) == 0
