"""What a caller may give for features, and what is refused; without a server."""

import math

import numpy as np
import pytest

from serving.client import RequestError
from serving.client.model_interface import ModelInterface
from serving.client.transport import Metadata, Signature, TensorSpec
from transform.errors import UserError

TEXT, NUMBER, TIME = "DT_STRING", "DT_FLOAT", "DT_INT64"


def specs(**tensors):
    return {name: TensorSpec(dtype, rank) for name, (dtype, rank) in tensors.items()}


def metadata():
    """Two sequences whose names begin alike, and a user feature that reads like a length."""
    users = specs(
        who=(TEXT, 1),
        age=(NUMBER, 1),
        queue_length=(TIME, 1),
        seen_length=(TIME, 1),
        seen_item=(TEXT, 2),
        seen_at=(TIME, 2),
        seen_buy=(NUMBER, 2),
        seen_long_length=(TIME, 1),
        seen_long_item=(TEXT, 2),
    )
    context = specs(device=(TEXT, 1))
    candidates = specs(item=(TEXT, 2), at=(TIME, 2), price=(NUMBER, 2), tags=(TEXT, 3))
    cache, count = specs(cache_user=(NUMBER, 2)), specs(candidate_count=(TIME, 1))
    scores = specs(buy=(NUMBER, 2), score=(NUMBER, 2), candidate_mask=(NUMBER, 2))
    signatures = {
        "rank": Signature({**users, **context, **candidates, **count}, scores),
        "encode_user": Signature(users, cache),
        "rank_with_user_state": Signature({**cache, **context, **candidates, **count}, scores),
    }
    return Metadata(3, signatures)


@pytest.fixture
def interface():
    return ModelInterface("m", metadata())


USER = {"who": "u1", "age": 31, "queue_length": 5}
EVENT = {"item": "a", "at": 1650813567259, "buy": True}
SEQUENCES = {"seen": [EVENT, {**EVENT, "item": None, "buy": None}], "seen_long": []}
CANDIDATE = {"item": "a", "at": 1650813567259, "price": 2.5, "tags": ["x", "y"]}
MISSING = {"item": None, "at": None, "price": None, "tags": None}


def test_values_become_the_tensors_of_the_signature(interface):
    inputs = interface.user_inputs(USER, SEQUENCES)
    assert {name: array.shape for name, array in inputs.items()} == {
        **dict.fromkeys(["who", "age", "queue_length", "seen_length", "seen_long_length"], (1,)),
        **dict.fromkeys(["seen_item", "seen_at", "seen_buy"], (1, 2)),
        "seen_long_item": (1, 1),
    }
    assert [inputs[name].dtype for name in ("who", "age", "seen_at", "seen_buy")] == [object, "f4", "i8", "f4"]
    assert inputs["seen_item"].tolist() == [["a", ""]]
    assert inputs["seen_buy"][0, 0] == 1 and math.isnan(inputs["seen_buy"][0, 1])
    assert (inputs["seen_length"][0], inputs["seen_long_length"][0]) == (2, 0)

    inputs, count = interface.candidate_inputs({"device": "phone"}, [CANDIDATE, MISSING])
    assert count == inputs["candidate_count"][0] == 2
    assert inputs["item"].tolist() == [["a", ""]]
    assert inputs["at"].tolist() == [[1650813567259, -1]]
    assert inputs["price"][0, 0] == 2.5 and math.isnan(inputs["price"][0, 1])
    assert inputs["tags"].tolist() == [[["", "x", "y"], ["", "", ""]]], "padded by its first value, it stays the same"


def test_what_numpy_holds_is_taken(interface):
    columns = {
        "item": np.array(["a", "b"]),
        "at": np.array([1650813567259, -1]),
        "price": np.array([2, 3], np.int32),
        "tags": np.array([["x"], ["y"]]),
    }
    inputs, _ = interface.candidate_inputs({"device": np.str_("phone")}, columns)
    assert inputs["item"].tolist() == [["a", "b"]] and inputs["price"].tolist() == [[2.0, 3.0]]
    assert inputs["at"].dtype == np.int64 and inputs["tags"].tolist() == [[["", "x"], ["", "y"]]]
    rows = [{"item": "a", "at": np.int64(5), "price": np.float32(2), "tags": ("x",)}]
    assert interface.candidate_inputs({"device": "phone"}, rows)[0]["price"].tolist() == [[2.0]]


def test_parts_are_equal_and_keep_the_order(interface):
    inputs, _ = interface.candidate_inputs({"device": "phone"}, [{**CANDIDATE, "price": n} for n in range(11)])
    parts = list(interface.in_parts(inputs, 4))
    assert [int(part["candidate_count"][0]) for part in parts] == [4, 4, 3]
    assert np.concatenate([part["price"][0] for part in parts]).tolist() == list(range(11))
    assert parts[2]["tags"].shape == (1, 3, 3) and parts[2]["device"].tolist() == ["phone"]


def changed(index, **values):
    rows = [dict(CANDIDATE) for _ in range(5)]
    rows[index].update(values)
    return {"candidates": rows}


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


COLUMNS = {name: [value] * 2 for name, value in CANDIDATE.items()}
MISTAKES = [
    (
        {"user": {**USER, "agee": 3}},
        "user: names that the model takes are expected. Received: `agee`. Did you mean `age`?",
    ),
    (
        {"user": {**USER, "x": 3}},
        "user: names that the model takes are expected. Received: `x`. Known: age, queue_length,",
    ),
    ({"user": without(USER, "age")}, "user.age: a value is expected. Received: nothing. Give None where"),
    ({"user": None}, "user.age: a value is expected. Received: nothing, nor for queue_length, who."),
    ({"user": [USER]}, "user: a mapping of names to values is expected. Received: [{"),
    ({"user": {**USER, "who": 17}}, "user.who: a text or None is expected. Received: 17 (int). Give it as the log"),
    ({"user": {**USER, "who": b"u1"}}, "user.who: a text or None is expected. Received: b'u1' (bytes)."),
    ({"user": {**USER, "who": ["u1"]}}, "user.who: a text or None is expected. Received: ['u1'] (list)."),
    ({"user": {**USER, "who": "\ud800"}}, "user.who: a text in UTF-8 is expected. Received: '\\ud800' (str)."),
    ({"user": {**USER, "age": "31"}}, "user.age: a number or None is expected. Received: '31' (str). Give the number,"),
    ({"user": {**USER, "age": math.inf}}, "user.age: a finite number or None is expected. Received: inf (float)."),
    ({"user": {**USER, "age": 1e39}}, "user.age: a finite number or None is expected. Received: 1e+39 (float)."),
    ({"user": {**USER, "age": 10**400}}, "user.age: a number of 64 bits is expected. Received: 1000"),
    ({"user": {**USER, "queue_length": 1.5}}, "user.queue_length: a whole number of epoch milliseconds or None is"),
    ({"user": {**USER, "queue_length": True}}, "user.queue_length: a whole number of epoch milliseconds or None is"),
    ({"user": {**USER, "queue_length": 2**63}}, "user.queue_length: a number of 64 bits is expected. Received: 9223"),
    ({"context": None}, "context.device: a value is expected. Received: nothing."),
    ({"sequences": None}, "sequences.seen: a value is expected. Received: nothing, nor for seen_long. Give None where"),
    ({"sequences": {**SEQUENCES, "saw": []}}, "sequences: names that the model takes are expected. Received: `saw`."),
    (
        {"sequences": {**SEQUENCES, "seen": EVENT["item"]}},
        "sequences.seen: a list of rows, or columns by name, is expected.",
    ),
    (
        {"sequences": {**SEQUENCES, "seen": [EVENT, {**EVENT, "at": 1650813567}]}},
        "sequences.seen[1].at: epoch milliseconds or None is expected. Received: 1650813567 (int). Convert it,",
    ),
    (
        {"sequences": {**SEQUENCES, "seen": [EVENT, without(EVENT, "buy")]}},
        "sequences.seen[1].buy: a value is expected.",
    ),
    ({"candidates": None}, "candidates: a list of rows, or columns by name, is expected. Received: None (NoneType)."),
    ({"candidates": ["a"]}, "candidates[0]: a mapping of names to values is expected. Received: 'a' (str)."),
    (changed(3, price="12"), "candidates[3].price: a number or None is expected. Received: '12' (str)."),
    (changed(4, item=3.5), "candidates[4].item: a text or None is expected. Received: 3.5 (float)."),
    (
        changed(2, colour="T"),
        "candidates[2]: names that the model takes are expected. Received: `colour`. Known: at, item,",
    ),
    (changed(2, tags="x"), "candidates[2].tags: a list of texts is expected. Received: 'x' (str). Give [] for none."),
    (changed(2, tags=["x", 3]), "candidates[2].tags: a list of texts is expected. Received: 3 (int). Leave missing"),
    (
        changed(1, at=10**14),
        "candidates[1].at: epoch milliseconds or None is expected. Received: 100000000000000 (int).",
    ),
    (changed(1, at=-2), "candidates[1].at: epoch milliseconds or None is expected. Received: -2 (int)."),
    (
        {"candidates": {**COLUMNS, "price": [1.0]}},
        "candidates: columns of one length are expected. Received: at 2, item 2, p",
    ),
    (
        {"candidates": {**COLUMNS, "price": 1.0}},
        "candidates.price: a list is expected. Received: 1.0 (float). Give one value",
    ),
    (
        {"candidates": {**COLUMNS, "price": np.ones((2, 2))}},
        "candidates[0].price: one value is expected. Received: array(",
    ),
    ({"candidates": without(COLUMNS, "price")}, "candidates.price: a value is expected. Received: nothing."),
]


@pytest.mark.parametrize(("changes", "text"), MISTAKES)
def test_mistakes_name_the_place_what_was_expected_what_came_and_the_cure(interface, changes, text):
    request = {
        "user": USER,
        "context": {"device": "phone"},
        "sequences": SEQUENCES,
        "candidates": [CANDIDATE],
        **changes,
    }
    with pytest.raises(RequestError) as caught:
        interface.candidate_inputs(request["context"], request["candidates"])
        interface.user_inputs(request["user"], request["sequences"])
    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, UserError)


def test_a_model_of_others_is_refused():
    signatures = {"serving_default": Signature({}, {})}
    with pytest.raises(RequestError, match="rank_with_user_state are expected. Received: serving_default."):
        ModelInterface("m", Metadata(3, signatures))
