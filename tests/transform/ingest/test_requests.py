"""From log rows to requests: what a request may know, what is counted, and what is refused."""

import gzip
import math
import random

import pytest

from tests.testing.toy_requests import (
    ITEMS,
    PAST,
    REMOVE,
    USERS,
    beam_requests,
    comparable,
    impression,
    plain_requests,
    requests_by_id,
    serialized,
    toy_spec,
    write_csv,
    write_files,
)
from transform.errors import DataError, find_user_error
from transform.features import request_example
from transform.ingest.beam_requests import RequestExamples
from transform.ingest.sources import resolve_sources

BY_ID = {"request": {"id": "request", "time": "time"}}
OBSERVED = {"tasks.1.observed_when": "click", "tasks.2.observed_when": "like"}


def random_log(seed, rows=60, users=("u1", "u2", "u9"), last_time=25):
    """Interleaved requests of several users with many ties in time, in random order."""
    chance = random.Random(seed)
    log = []
    for _ in range(rows):
        user, request = chance.choice(users), chance.randrange(8)
        log.append(
            impression(
                chance.choice("abcdefgh"),
                chance.randrange(last_time),
                chance.randint(1, 4),
                user,
                request=f"{user}.{request}",
                bid=str(chance.randrange(3)),
                **{label: str(chance.randrange(2)) for label in ("clicked", "liked", "shared", "seconds")},
            )
        )
    return log


def example_set(spec, folder):
    return sorted((split, serialized(values)) for split, values in plain_requests(spec, folder)[0])


# === Point-in-time histories ===


def test_history_holds_events_strictly_before_the_first_impression(tmp_path):
    log = [
        impression("a", 10, request="r1"),
        impression("b", 20, request="r2"),
        impression("c", 30, request="r3"),  # a tie with r4's first impression
        impression("d", 30, request="r4"),
        impression("e", 40, request="r3"),  # within r3, while r4 runs
        impression("f", 50, request="r4"),
        impression("g", 60, request="r5"),
    ]
    requests = requests_by_id(toy_spec(BY_ID), write_files(tmp_path, log[::-1]))
    assert {key: values["seen_item"] for key, values in requests.items()} == {
        "r1": [],
        "r2": ["a"],
        "r3": ["a", "b"],
        "r4": ["a", "b"],
        "r5": ["c", "d", "e", "f"],
    }
    assert requests["r4"]["item"] == ["d", "f"]
    assert requests["r4"]["request_time"] == [30]


def test_planted_future_events_never_appear(tmp_path):
    planted = [impression("h", time, day, liked="1", clicked="1") for day, time in [(1, 12), (2, 25), (3, 900)]]
    log = [*planted, impression("a", 10), impression("b", 20, day=2, liked="1"), impression("c", 30, day=4)]
    requests = requests_by_id(toy_spec(), write_files(tmp_path, log))
    assert requests["u1|1"]["seen_item"] == []
    assert requests["u1|2"]["seen_item"] == ["a", "h"]
    assert requests["u1|4"]["seen_item"] == ["a", "h", "b", "h"]
    assert requests["u1|4"]["loved_item"] == ["b", "h"]


@pytest.mark.parametrize("seed", range(4))
def test_histories_equal_a_search_through_the_whole_log(tmp_path, seed):
    log = random_log(seed, users=("u1", "u2"))
    log = list({tuple(row.values()): row for row in log}.values())
    spec = toy_spec({**BY_ID, "request.max_candidates": 100, "sequences.0.length": 7})
    for key, values in requests_by_id(spec, write_files(tmp_path, log)).items():
        members = [row for row in log if row["request"] == key]
        start = min(row["time"] for row in members)
        assert values["request_time"] == [start]
        assert sorted(values["item"]) == sorted(row["item"] for row in members)
        before = [row for row in log if row["user"] == key[:2] and row["time"] < start]
        loved = [row for row in before if row["liked"] == "1"]
        for name, events, length in (("seen", before, 7), ("loved", loved, 2)):
            kept = list(values[f"{name}_item"])
            assert len(kept) == min(length, len(events))
            # Events of one moment may stand in any order, and any of them may be the ones that are cut.
            times = sorted(row["time"] for row in events)[-length:]
            for time in sorted(set(times)):
                moment = [row["item"] for row in events if row["time"] == time]
                taken = [kept.pop(0) for _ in range(times.count(time))]
                assert not set(taken) - set(moment)
                assert times.count(time) < len(moment) or sorted(taken) == sorted(moment)


@pytest.mark.parametrize("seed", range(3))
def test_row_order_and_files_do_not_matter(tmp_path, seed):
    log = random_log(seed)
    log += log[:5]  # exact duplicates
    spec = toy_spec({"data.past": PAST, "features.context.0.pick": "first", "request.max_candidates": 3})
    past = [{"user": "u1", "until": 6, "items": "a b c", "loved": "b"}]
    expected = example_set(spec, write_files(tmp_path, log, past))
    random.Random(seed).shuffle(log)
    write_csv(tmp_path / "log.csv", log[:20])
    write_csv(tmp_path / "log_0.csv", log[20:])
    assert example_set(spec, tmp_path) == expected


def test_sequences_are_typed_and_carry_their_own_feedback(tmp_path):
    log = [
        impression("a", 10, clicked="1"),
        impression("b", 20, liked="1"),
        impression("c", 30, clicked="1", liked="1"),
        impression("d", 40, liked=""),
        impression("e", 50, day=2),
    ]
    spec = toy_spec({"sequences.0.features": ["item", "genre", "price", "bid"]})
    values = requests_by_id(spec, write_files(tmp_path, log))["u1|2"]
    assert values["seen_item"] == ["a", "b", "c", "d"]
    assert values["seen_genre"] == ["g_a", "g_b", "g_c", "g_d"]
    assert values["seen_price"] == [0.0, 1.5, 3.0, 4.5]
    assert values["seen_bid"] == [0.5] * 4
    assert values["seen_click"] == [1.0, 0.0, 1.0, 0.0]
    assert values["seen_like"] == [0.0, 1.0, 1.0, None]
    assert values["loved_item"] == ["b", "c"]
    assert "loved_genre" not in values and "loved_like" not in values


def test_length_keeps_the_newest_events(tmp_path):
    log = [impression(item, time, liked="1") for time, item in enumerate("abcdefg", start=10)]
    log += [impression("h", 90, day=2)]
    values = requests_by_id(toy_spec(), write_files(tmp_path, log))["u1|2"]
    assert values["seen_item"] == ["d", "e", "f", "g"]
    assert values["loved_item"] == ["f", "g"]


@pytest.mark.parametrize("tied", [False, True])
def test_outcomes_of_a_request_are_no_inputs_of_it(tmp_path, tied):
    """Not even through the order of impressions of one moment, or through what falls into which part."""
    log = [impression("h", 5, day=1, device="tv" if tied else "phone")]
    log += [
        impression(item, 20 if tied else 20 + place, day=2, device="phone" if place % 2 else "tv")
        for place, item in enumerate("abcdefg")
    ]
    log += [impression("a", 50, day=3)]
    for row in log:
        row["weight"] = "1"
    changes = {"features.context.0.pick": "first", "request.max_candidates": 3, "sequences.0.length": 20}
    spec = toy_spec({**changes, **OBSERVED, "request.weight": "weight"})
    inputs = [*request_example.input_dtypes(spec), request_example.REQUEST_ID, request_example.REQUEST_TIME]
    calm = requests_by_id(spec, write_files(tmp_path, log))
    for place, row in enumerate(log[1:-1]):
        row.update(clicked="1", liked="1", shared=str(place % 2), seconds=str(100 + 7 * place), weight=str(9 - place))
    lively = requests_by_id(spec, write_files(tmp_path, log))
    for before, after in zip(calm["u1|2"], lively["u1|2"], strict=True):
        assert {key: before[key] for key in inputs} == {key: after[key] for key in inputs}
        assert before["label_click"] != after["label_click"]
    before, after = calm["u1|3"], lively["u1|3"]
    assert before["seen_item"] == after["seen_item"] and len(before["seen_item"]) == 8
    assert before["seen_click"] == [0.0] * 8 and after["seen_click"] == [0.0] + [1.0] * 7
    assert before["seen_like"] == [0.0] + [None] * 7 or before["seen_like"] == [None] * 8
    assert after["seen_like"][1:] == [1.0] * 7
    assert before["loved_item"] == [] and len(after["loved_item"]) == 2


# === The past ===


def test_past_comes_first_with_joined_columns_and_feedback_by_membership(tmp_path):
    past = [{"user": "u1", "until": 100, "items": "c a zz a", "loved": "a e"}]
    log = [
        impression("d", 101, clicked="1"),
        impression("e", 150, day=2),
    ]
    spec = toy_spec({"data.past": PAST, "sequences.0.length": 9, "sequences.1.length": 9})
    values = requests_by_id(spec, write_files(tmp_path, log, past))["u1|2"]
    assert values["seen_item"] == ["c", "a", "zz", "a", "d"]
    assert values["seen_genre"] == ["g_c", "g_a", "", "g_a", "g_d"]
    assert values["seen_price"] == [3.0, 0.0, None, 0.0, 4.5]
    assert values["seen_like"] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert values["seen_click"] == [None, None, None, None, 1.0]  # the past does not say who clicked
    assert values["loved_item"] == ["a", "e"]


def test_length_cuts_the_past_first(tmp_path):
    past = [{"user": "u1", "until": 100, "items": "a b c", "loved": ""}]
    log = [impression("d", 101), impression("e", 102), impression("f", 150, day=2)]
    values = requests_by_id(toy_spec({"data.past": PAST}), write_files(tmp_path, log, past))["u1|2"]
    assert values["seen_item"] == ["b", "c", "d", "e"]


def test_past_is_unknown_to_requests_that_are_not_later(tmp_path):
    past = [{"user": "u1", "until": 100, "items": "a b", "loved": "b"}]
    log = [
        impression("a", 90, request="r1"),
        impression("b", 100, request="r2"),
        impression("c", 101, request="r3"),
        impression("d", 102, request="r4"),
    ]
    changes = {**BY_ID, "data.past": PAST}
    requests = requests_by_id(toy_spec(changes), write_files(tmp_path, log, past))
    assert [requests[key]["seen_item"] for key in ("r1", "r2", "r3", "r4")] == [[], [], ["a", "b"], ["a", "b", "c"]]
    assert [requests[key]["loved_item"] for key in ("r1", "r2", "r3", "r4")] == [[], [], ["b"], ["b"]]


def test_log_rows_within_the_past_are_not_counted_twice(tmp_path):
    past = [{"user": "u1", "until": 100, "items": "a b", "loved": "b"}]
    log = [impression("a", 90), impression("b", 100, liked="1"), impression("c", 101), impression("d", 200, day=2)]
    spec = toy_spec({"data.past": PAST})
    (first, second), counts = plain_requests(spec, write_files(tmp_path, log, past))
    assert second[1]["seen_item"] == ["a", "b", "c"]
    assert second[1]["loved_item"] == ["b"]
    assert first[1]["item"] == ["a", "b", "c"]  # they stay impressions
    assert counts["events_within_past"] == 2


def test_log_rows_within_the_past_stay_events_of_sequences_that_it_does_not_hold(tmp_path):
    past = [{"user": "u1", "until": 100, "items": "b a", "loved": "b"}]
    log = [impression("a", 90), impression("b", 100, liked="1", day=2), impression("c", 200, day=3)]
    spec = toy_spec({"data.past": PAST, "data.past.sequences": {"seen": {"item": "items"}}})
    values = requests_by_id(spec, write_files(tmp_path, log, past))["u1|3"]
    assert values["seen_item"] == ["b", "a"]
    assert values["loved_item"] == ["b"]


def test_past_without_a_time_precedes_every_request(tmp_path):
    past = [{"user": "u1", "items": "a b", "loved": ""}, {"user": "u2", "items": "", "loved": ""}]
    log = [impression("c", 1), impression("d", 1, user="u2"), impression("e", 1, user="u9")]
    spec = toy_spec({"data.past": PAST, "data.past.time": REMOVE})
    requests = requests_by_id(spec, write_files(tmp_path, log, past))
    assert {key: values["seen_item"] for key, values in requests.items()} == {
        "u1|1": ["a", "b"],
        "u2|1": [],
        "u9|1": [],
    }


def test_feedback_of_past_events_without_an_item_is_unknown(tmp_path):
    past = [{"user": "u1", "until": 1, "genres": "x;y", "loved": ""}]
    spec = toy_spec({"data.past": {**PAST, "separator": ";", "sequences": {"seen": {"genre": "genres"}}}})
    values = requests_by_id(spec, write_files(tmp_path, [impression("c", 5)], past))["u1|1"]
    assert values["seen_genre"] == ["x", "y"]
    assert values["seen_item"] == ["", ""]
    assert values["seen_like"] == [None, None]


def test_past_events_of_a_sequence_with_a_condition_meet_it(tmp_path):
    past = [{"user": "u1", "until": 1, "items": "", "loved": "a b"}]
    changes = {"data.past": PAST, "data.past.feedback": REMOVE, "sequences.1.feedback": ["like", "click"]}
    values = requests_by_id(toy_spec(changes), write_files(tmp_path, [impression("c", 5)], past))["u1|1"]
    assert values["loved_like"] == [1.0, 1.0]
    assert values["loved_click"] == [None, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"items": "a b", "genres": "x"}, r"past of `u1`, sequence `seen`.*genre 1, item 2"),
        ({"items": "a", "genres": "x", "until": "soon"}, r"past of u1.*whole number.*`until`.*`soon`"),
    ],
)
def test_past_that_makes_no_sense_is_refused(tmp_path, row, message):
    past = [{"user": "u1", "until": 1, "loved": "", **row}]
    spec = toy_spec({"data.past": PAST, "data.past.sequences.seen": {"item": "items", "genre": "genres"}})
    write_files(tmp_path, [impression("c", 5)], past)
    with pytest.raises(DataError, match=message):
        plain_requests(spec, tmp_path)


# === Rows, requests and splits ===


def test_exact_duplicates_are_dropped_and_counted(tmp_path):
    log = [
        impression("a", 1),
        impression("b", 2),
        impression("a", 1),
        impression("a", 1),
        impression("a", 1, seconds="2"),
    ]
    ((_, values),), counts = plain_requests(toy_spec(), write_files(tmp_path, log))
    assert sorted(values["item"]) == ["a", "a", "b"]  # the last row differs in a column that no one reads
    assert (counts["impressions_read"], counts["duplicates_dropped"]) == (5, 2)


def test_duplicates_stay_on_request(tmp_path):
    log = [impression("a", 1), impression("b", 2), impression("a", 1), impression("c", 3, day=2)]
    spec = toy_spec({"data.drop_duplicates": False})
    requests, counts = plain_requests(spec, write_files(tmp_path, log))
    assert requests[0][1]["item"] == ["a", "a", "b"]
    assert requests[1][1]["seen_item"] == ["a", "a", "b"]
    assert counts["duplicates_dropped"] == 0


def test_long_requests_are_split_and_nothing_is_dropped(tmp_path):
    log = [impression("h", 1)] + [impression(item, 10 + t, day=2, liked="1") for t, item in enumerate("abcdefg")]
    spec = toy_spec({"request.max_candidates": 3})
    requests, counts = plain_requests(spec, write_files(tmp_path, log))
    parts = [values for _, values in requests[1:]]
    assert [part["item"] for part in parts] == [list("abc"), list("def"), list("g")]
    assert [part["candidate_count"] for part in parts] == [[3], [3], [1]]
    assert [part["label_like"] for part in parts] == [[1.0] * 3, [1.0] * 3, [1.0]]
    for part in parts:
        assert part["request_id"] == ["u1|2"] and part["request_time"] == [10]
        assert part["seen_item"] == ["h"]  # not the parts before it
    assert (counts["train_requests"], counts["train_impressions"]) == (2, 8)
    assert (counts["requests_above_max_candidates"], counts["train_positives_like"]) == (1, 7)


def test_candidate_features_come_from_log_and_item_table(tmp_path):
    items = [{**ITEMS[0], "tags": ""}, {**ITEMS[1], "tags": "x,,y", "price": ""}, {**ITEMS[2], "price": "nan"}]
    log = [impression("a", 1), impression("b", 2, bid="-2e3"), impression("c", 3, bid=""), impression("zz", 4)]
    ((_, values),), counts = plain_requests(toy_spec(), write_files(tmp_path, log, items=items))
    assert values["item"] == ["a", "b", "c", "zz"]
    assert values["genre"] == ["g_a", "g_b", "g_c", ""]
    assert values["price"] == [0.0, None, None, None]
    assert values["bid"] == [0.5, -2000.0, None, 0.5]
    assert (values["tags"], values["tags_length"]) == (["x", "y", "c", "x"], [0, 2, 2, 0])
    assert counts["impressions_without_item_row"] == 1


def test_labels_that_are_missing_or_unobserved_are_masked(tmp_path):
    outcomes = [("1", "1", "1"), ("1", "0", "1"), ("0", "1", "1"), ("", "1", "1"), ("1", "", "1"), ("1", "1.0", "")]
    log = [
        impression(item, time, clicked=click, liked=like, shared=share)
        for time, (item, (click, like, share)) in enumerate(zip("abcdef", outcomes, strict=True), start=1)
    ]
    write_files(tmp_path, [*log, impression("g", 50, day=2)])
    first = requests_by_id(toy_spec(OBSERVED), tmp_path)["u1|1"]
    assert first["label_click"] == [1, 1, 0, 0, 1, 1] and first["weight_click"] == [1, 1, 1, 0, 1, 1]
    assert first["label_like"] == [1, 0, 0, 0, 0, 1] and first["weight_like"] == [1, 1, 0, 0, 0, 1]
    assert first["label_share"] == [1, 0, 0, 0, 0, 0] and first["weight_share"] == [1, 0, 0, 0, 0, 0]
    spec = toy_spec({**OBSERVED, "sequences.0.feedback": ["share"], "sequences.0.length": 9})
    later = requests_by_id(spec, tmp_path)["u1|2"]
    assert later["seen_share"] == [1, None, None, None, None, None]
    assert later["loved_item"] == ["a", "f"]


def test_masks_are_the_weights_of_what_is_observed(tmp_path):
    log = [
        impression("a", 1, weight="2.5", clicked="1"),
        impression("b", 2, weight="0", clicked="1"),
        impression("c", 3, weight="1", clicked=""),
    ]
    spec = toy_spec({"request.weight": "weight", "tasks.1.observed_when": "click"})
    values = requests_by_id(spec, write_files(tmp_path, log))["u1|1"]
    assert values["label_click"] == [1.0, 0.0, 0.0]
    assert values["weight_click"] == [2.5, 0.0, 0.0]
    assert values["weight_like"] == [2.5, 0.0, 0.0]
    assert values["weight_share"] == [2.5, 0.0, 1.0]


def test_weights_are_read_of_a_log_that_has_them(tmp_path):
    write_files(tmp_path, [impression("a", 1)])
    with pytest.raises(DataError, match="log.csv: column `weight` is expected"):
        RequestExamples(toy_spec({"request.weight": "weight"}), str(tmp_path))
    write_csv(tmp_path / "log.csv", [{"user": "u1", "day": 1, "time": 1, "item": "a", "device": "tv", "bid": "1"}])
    ((_, values),) = plain_requests(toy_spec({"request.weight": "weight"}), tmp_path, for_scoring=True)[0]
    assert values["weight_click"] == [0.0]


def test_observation_follows_the_whole_chain(tmp_path):
    """A share needs a like that needs a click: with the click unknown or absent, a 1 for the like says nothing."""
    log = [impression("a", 1, clicked="0", liked="1", shared="1")]
    spec = toy_spec({"tasks.1.observed_when": "click", "tasks.2.observed_when": "like"})
    values = requests_by_id(spec, write_files(tmp_path, log))["u1|1"]
    assert [values[f"weight_{task}"] for task in spec.task_names] == [[1.0], [0.0], [0.0]]


def test_request_features_should_be_constant(tmp_path):
    log = [impression("a", 1), impression("b", 2, device="phone")]
    write_files(tmp_path, log[::-1])
    message = r"log.csv:2: feature `device` .*`phone` after `tv` \(log.csv:3\).*`pick: first`"
    with pytest.raises(DataError, match=message):
        plain_requests(toy_spec(), tmp_path)
    values = requests_by_id(toy_spec({"features.context.0.pick": "first"}), tmp_path)["u1|1"]
    assert values["device"] == ["tv"]


def test_user_features_may_stand_in_the_log(tmp_path):
    spec = toy_spec({"features.user": [{"name": "place", "column": "device", "type": "categorical"}]})
    values = requests_by_id(spec, write_files(tmp_path, [impression("a", 1, device="car")]))["u1|1"]
    assert values["place"] == ["car"]


def test_splits_are_inclusive_ranges(tmp_path):
    log = [impression("a", 10 * day, day) for day in (0, 1, 2, 3, 4, 5)]
    requests, counts = plain_requests(toy_spec(), write_files(tmp_path, log))
    assert [(split, values["request_id"][0]) for split, values in requests] == [
        ("train", "u1|1"),
        ("train", "u1|2"),
        ("eval", "u1|3"),
        ("test", "u1|4"),
    ]
    assert counts["impressions_outside_splits"] == 2
    assert requests[0][1]["seen_item"] == ["a"]  # rows outside the splits are events all the same


def test_string_splits_compare_as_text(tmp_path):
    days = ["2022-04-24", "2022-04-25", "2022-05-03", "2022-05-04"]
    log = [impression("a", 10 * place, day) for place, day in enumerate(days)]
    split = {"train": ["2022-04-25", "2022-05-02"], "eval": ["2022-05-03"] * 2, "test": ["2022-05-04"] * 2}
    requests, counts = plain_requests(toy_spec({"split": {"by": "day", **split}}), write_files(tmp_path, log))
    assert [split for split, _ in requests] == ["train", "eval", "test"]
    assert counts["impressions_outside_splits"] == 1


def test_a_request_belongs_to_the_split_of_its_first_impression(tmp_path):
    log = [impression("b", 20, day=3, request="r"), impression("a", 10, day=2, request="r")]
    ((split, values),), _ = plain_requests(toy_spec(BY_ID), write_files(tmp_path, log))
    assert (split, values["item"]) == ("train", ["a", "b"])


def test_users_without_a_row_and_users_apart(tmp_path):
    log = [
        impression("a", 1, user="u1"),
        impression("b", 2, user="u2"),
        impression("c", 3, day=2, user="u9"),
        impression("d", 4, day=2, user="u1"),
    ]
    requests = requests_by_id(toy_spec(), write_files(tmp_path, log))
    assert requests["u1|2"]["seen_item"] == ["a"]  # never another user's
    assert (requests["u2|1"]["country"], requests["u2|1"]["age"]) == (["nz"], [None])
    assert (requests["u9|2"]["country"], requests["u9|2"]["age"]) == ([""], [None])


def test_scoring_needs_neither_labels_nor_splits(tmp_path):
    log = [impression("a", 1, day=77), impression("b", 2, day=78)]
    for row in log:
        for column in ("clicked", "liked", "shared", "seconds"):
            del row[column]
    spec = toy_spec({"split.by": "nowhere"})
    requests, counts = plain_requests(spec, write_files(tmp_path, log), for_scoring=True)
    assert [(split, values["request_id"]) for split, values in requests] == [("all", ["u1|77"]), ("all", ["u1|78"])]
    later = requests[1][1]
    assert (later["seen_item"], later["seen_click"], later["loved_item"]) == (["a"], [None], [])
    assert (later["label_click"], later["weight_click"]) == ([0.0], [0.0])
    assert counts["impressions_outside_splits"] == 0


def test_scoring_uses_labels_that_are_there(tmp_path):
    write_files(tmp_path, [impression("a", 1, liked="1"), impression("b", 2, day=9)])
    values = requests_by_id(toy_spec(), tmp_path, for_scoring=True)["u1|9"]
    assert (values["seen_like"], values["loved_item"], values["weight_like"]) == ([1.0], ["a"], [1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bid": "cheap"}, "log.csv:3: a finite number is expected for feature `bid`. Received: `cheap`"),
        ({"bid": "inf"}, "log.csv:3: a finite number .*`bid`. Received: `inf`"),
        ({"bid": "-1e39"}, "log.csv:3: a finite number .*`bid`. Received: `-1e39`"),  # too large for a float32
        ({"clicked": "2"}, "log.csv:3: 0, 1 or nothing is expected in label column `clicked`. Received: `2`"),
        ({"clicked": "0.5"}, "log.csv:3: 0, 1 .*`clicked`. Received: `0.5`"),
        ({"clicked": "nan"}, "log.csv:3: 0, 1 .*`clicked`. Received: `nan`"),
        ({"clicked": "yes"}, "log.csv:3: 0, 1 .*`clicked`. Received: `yes`"),
        ({"time": "1.5"}, "log.csv:3: a whole number of epoch milliseconds .*`time`. Received: `1.5`"),
        ({"time": ""}, "log.csv:3: a whole number .*`time`. Received: ``"),
        ({"time": "1650813567"}, "log.csv:3: epoch milliseconds .*`time`. Received: `1650813567`.*looks like seconds"),
        ({"time": "1650813567259000"}, "log.csv:3: epoch milliseconds .*looks like micro- or nanoseconds"),
        ({"time": "-5"}, "log.csv:3: epoch milliseconds .*looks like a time before 1970"),
        ({"day": "Monday"}, "log.csv:3: a whole number is expected in `day`.*`split` are numbers. Received: `Monday`"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_file_and_line(tmp_path, changes, message):
    write_files(tmp_path, [impression("a", 1), {**impression("b", 2), **changes}])
    with pytest.raises(DataError, match=message):
        plain_requests(toy_spec(), tmp_path)


@pytest.mark.parametrize("weight", ["", "-1", "nan", "inf", "much"])
def test_weights_that_make_no_sense_are_refused(tmp_path, weight):
    write_files(tmp_path, [impression("a", 1, weight="1"), impression("b", 2, weight=weight)])
    with pytest.raises(DataError, match=f"log.csv:3: a number from 0 on is expected in `weight`.*Received: `{weight}`"):
        plain_requests(toy_spec({"request.weight": "weight"}), tmp_path)


def test_side_table_values_that_make_no_sense_name_the_feature(tmp_path):
    write_files(tmp_path, [impression("a", 1)], items=[{**ITEMS[0], "price": "free"}])
    with pytest.raises(DataError, match="feature `price`. Received: `free`"):
        plain_requests(toy_spec(), tmp_path)


# === Files ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.impressions.files": ["lgo*.csv"]}, "data.impressions.files: files that match `lgo"),
        ({"data.tables.user.files": ["people.csv"]}, "data.tables.user.files: .*`people.csv`"),
        ({"data.past": {**PAST, "files": ["none.csv"]}}, "data.past.files: .*`none.csv`"),
        ({"data.impressions.files": ["log.csv", "log.orc"]}, "parquet files are expected. Received: .*log.orc"),
        ({"tasks.0.label": "clickd"}, "log.csv: column `clickd` .*Did you mean `clicked`"),
        ({"request.time": "tme"}, "log.csv: column `tme` .*Did you mean `time`"),
        ({"split.by": "date"}, "log.csv: column `date` is expected .*(Did you mean|Its columns: user, day)"),
        ({"request.group_by": ["user", "hour"]}, "log.csv: column `hour` is expected"),
        ({"data.tables.user.key": "usr"}, "column `usr` .*Did you mean `user`"),
        ({"data.tables.item.key": "thing"}, "column `thing`"),
        ({"data.past": {**PAST, "time": "untl"}}, "past.csv: column `untl` .*Did you mean `until`"),
        ({"features.user.0.column": "land"}, "features.user `country`: a column `land` in the user table and the log"),
        ({"features.context.0.column": "genre"}, "features.context `device`: a column `genre` in the log is expected"),
        (
            {"features.candidate.3.column": "cost"},
            "features.candidate `price`: a column `cost` in the log and the item",
        ),
    ],
)
def test_missing_files_and_columns_are_found_before_anything_runs(tmp_path, changes, message):
    write_files(tmp_path, [impression("a", 1)], [{"user": "u1", "until": 1, "items": "", "loved": ""}])
    (tmp_path / "log.orc").write_bytes(b"ORC")
    with pytest.raises(DataError, match=message):
        RequestExamples(toy_spec(changes), str(tmp_path))


def test_every_file_of_a_pattern_needs_the_columns(tmp_path):
    write_files(tmp_path, [impression("a", 1)])
    row = impression("b", 2)
    del row["shared"]
    write_csv(tmp_path / "log_2.csv", [row])
    with pytest.raises(DataError, match=r"log_2.csv: column `shared`"):
        resolve_sources(toy_spec(), str(tmp_path))


def test_a_file_that_two_patterns_match_is_read_once(tmp_path):
    write_files(tmp_path, [impression("a", 1)])
    changes = {"data.impressions.files": ["log.csv", "log*.csv"], "data.drop_duplicates": False}
    ((_, values),), _ = plain_requests(toy_spec(changes), tmp_path)
    assert values["item"] == ["a"]


def test_column_order_may_differ_from_file_to_file(tmp_path):
    write_files(tmp_path, [impression("a", 1)])
    write_csv(tmp_path / "log_2.csv", [impression("b", 2)], sorted(impression("b", 2)))
    ((_, values),), _ = plain_requests(toy_spec(), tmp_path)
    assert (values["item"], values["bid"]) == (["a", "b"], [0.5, 0.5])


def gzipped_log(folder, rows=2000):
    chance = random.Random(1)
    log = [
        impression(chance.choice("abcdefgh"), chance.randrange(10**9), bid=str(chance.random())) for _ in range(rows)
    ]
    write_files(folder, log)
    content = (folder / "log.csv").read_bytes()
    (folder / "log.csv").unlink()
    return content


def test_gzipped_files_are_read(tmp_path):
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(gzipped_log(tmp_path, rows=300)))
    requests, counts = plain_requests(toy_spec({"data.impressions.files": ["log*.csv.gz"]}), tmp_path)
    assert counts["impressions_read"] == 300 and len(requests) == math.ceil(300 / 64)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "not gzip"])
def test_damaged_gzip_is_a_data_error(tmp_path, damage):
    packed = gzip.compress(gzipped_log(tmp_path))
    broken = {
        "truncated": packed[: len(packed) // 2],
        "garbage": packed[:10] + b"\xff" * 99,
        "not gzip": b"user,day,time\n" * 9,
    }
    (tmp_path / "log.csv.gz").write_bytes(broken[damage])
    with pytest.raises(
        DataError, match=r"log.csv.gz: a readable csv file in UTF-8 is expected. .*Check that it is whole"
    ):
        plain_requests(toy_spec({"data.impressions.files": ["log*.csv.gz"]}), tmp_path)


def test_wrong_encoding_is_a_data_error(tmp_path):
    write_files(tmp_path, [impression("a", 1), impression("b", 2, device="téléphone")])
    (tmp_path / "log.csv").write_bytes((tmp_path / "log.csv").read_text(encoding="utf-8").encode("latin-1"))
    with pytest.raises(DataError, match=r"log.csv: a readable csv file in UTF-8 is expected"):
        plain_requests(toy_spec(), tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    write_files(tmp_path, [impression("a", 1)])
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "log.csv").read_bytes())
    assert requests_by_id(toy_spec(), tmp_path)["u1|1"]["item"] == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("u1,1,3", r"log.csv:3: 10 values .*Received: 3"), (",".join("1" * 11), r"log.csv:3: .*Received: 11")],
)
def test_a_row_with_another_number_of_values_is_refused(tmp_path, line, message):
    write_files(tmp_path, [impression("a", 1)])
    with open(tmp_path / "log.csv", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        plain_requests(toy_spec(), tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    write_files(tmp_path, [impression("a", 1)])
    (tmp_path / "users.csv").write_text("")
    with pytest.raises(DataError, match=r"users.csv: a header line is expected"):
        plain_requests(toy_spec(), tmp_path)


# === The Beam transform ===


def beam_error(spec, folder):
    with pytest.raises(Exception) as caught:  # noqa: B017 (Beam wraps what a worker raises)
        beam_requests(spec, folder)
    return find_user_error(caught.value)


def test_beam_builds_the_same_requests_whatever_the_order_of_rows(tmp_path):
    changes = {"data.past": PAST, "features.context.0.pick": "first", "request.max_candidates": 3}
    spec, log = toy_spec(changes), random_log(7)
    past = [{"user": "u1", "until": 6, "items": "a b c", "loved": "b"}]
    write_files(tmp_path, log[:40], past)
    write_csv(tmp_path / "log_2.csv", log[40:])
    requests, counts = plain_requests(spec, tmp_path)
    expected = {}
    for split, values in requests:
        expected.setdefault(split, []).append(serialized(values))
    found, found_counts = beam_requests(spec, tmp_path)
    assert found == {split: sorted(parts) for split, parts in expected.items()}
    for name, count in counts.items():
        assert found_counts[name] == count, name
    assert found_counts["users"] == 3
    assert found_counts["users_without_table_row"] == 1
    write_csv(tmp_path / "log.csv", log[::-1])
    (tmp_path / "log_2.csv").unlink()
    assert beam_requests(spec, tmp_path)[0] == found


def test_beam_counts_rows_out_of_order_and_late(tmp_path):
    log = [
        impression("a", 10),
        impression("b", 30),
        impression("c", 20),  # out of order
        impression("h", 25),  # still before the newest one
        impression("d", 40, day=2),
        impression("e", 35, day=2),  # out of order
        impression("f", 15),  # of day 1, after day 2 began: late as well
        impression("g", 50, day=2),
    ]
    found, counts = beam_requests(toy_spec(), write_files(tmp_path, log))
    assert (counts["out_of_order_rows"], counts["late_rows"]) == (4, 1)
    first, second = sorted(
        (request_example.decode(request) for request in found["train"]), key=lambda r: r["request_id"]
    )
    assert first["item"] == ["a", "f", "c", "h", "b"]
    assert second["seen_item"] == ["f", "c", "h", "b"]


def test_beam_takes_request_ids_without_tables_and_sequences(tmp_path):
    changes = {
        **BY_ID,
        "data.tables": REMOVE,
        "sequences": [],
        "features.user": [{"name": "country", "column": "user", "type": "categorical"}],
        "features.candidate": [{"name": "item", "type": "categorical"}],
    }
    spec = toy_spec(changes)
    log = [impression(item, time, request=f"r{time % 2}") for time, item in enumerate("abcde")]
    found, counts = beam_requests(spec, write_files(tmp_path, log))
    by_id = {values["request_id"][0]: values["item"] for values in map(request_example.decode, found["train"])}
    assert by_id == {"r0": ["a", "c", "e"], "r1": ["b", "d"]}
    assert "users" not in counts and "impressions_without_item_row" not in counts


def test_beam_refuses_a_request_id_of_two_users(tmp_path):
    log = [impression("a", 1, request="r7"), impression("b", 2, user="u2", request="r7")]
    assert "request `r7`: rows of one user are expected. Received: users u1, u2." in beam_error(
        toy_spec(BY_ID), write_files(tmp_path, log)
    )


def test_beam_refuses_rows_of_one_item_that_differ(tmp_path):
    items = [ITEMS[0], ITEMS[1], {**ITEMS[0], "price": "9"}]
    error = beam_error(toy_spec(), write_files(tmp_path, [impression("a", 1)], items=items))
    assert error.startswith("items.csv:4: one row a key is expected. Received: key `a` again")
    assert "items.csv:2" in error


def test_beam_refuses_rows_of_one_user_that_differ(tmp_path):
    users = [USERS[0], {**USERS[0], "age": "31"}]
    error = beam_error(toy_spec(), write_files(tmp_path, [impression("a", 1)], users=users))
    assert error.startswith("users.csv:3: one row a key is expected. Received: key `u1` again")


def test_beam_accepts_equal_rows_and_scores_a_log_without_labels(tmp_path):
    log = [{key: impression("a", 1, day=77)[key] for key in ("user", "day", "time", "item", "device", "bid")}]
    write_files(tmp_path, log, users=USERS * 2, items=ITEMS * 2)
    found, counts = beam_requests(toy_spec(), tmp_path, for_scoring=True)
    (request,) = found["all"]
    values = comparable(request_example.decode(request))
    assert (values["country"], values["price"], values["weight_like"]) == (["at"], [0.0], [0.0])
    assert counts["all_requests"] == 1


def test_beam_hands_the_text_of_a_data_error_on(tmp_path):
    error = beam_error(toy_spec(), write_files(tmp_path, [impression("a", 1, bid="cheap")]))
    assert error.startswith("log.csv:2: a finite number is expected for feature `bid`. Received: `cheap`.")
    assert "while running" not in error and "\n" not in error


def test_requests_without_a_user_share_no_history(tmp_path):
    log = [
        impression("a", 10, user="", request="r1"),
        impression("b", 20, user="", request="r2"),
        impression("c", 30, user="u1", request="r3"),
        impression("d", 40, user="u1", request="r4"),
    ]
    requests, counts = beam_requests(toy_spec(BY_ID), write_files(tmp_path, log))
    decoded = [request_example.decode(request) for found in requests.values() for request in found]
    histories = {values["request_id"][0]: values["seen_item"] for values in decoded}
    assert histories == {"r1": [], "r2": [], "r3": [], "r4": ["c"]}
    assert counts["impressions_without_user"] == 2


def test_empty_lines_are_no_rows(tmp_path):
    write_files(tmp_path, [impression("a", 10, request="r1")])
    with (tmp_path / "log.csv").open("a") as file:
        file.write("\n\n")
    assert list(requests_by_id(toy_spec(BY_ID), tmp_path)) == ["r1"]
