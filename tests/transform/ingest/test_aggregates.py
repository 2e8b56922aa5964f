"""Aggregate features: point in time, to the last label, and the same in the exported table."""

import json
import math
import os
from datetime import date, datetime, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

from tests.testing.analysis import analysed, transformed
from tests.testing.tiers import costly
from tests.testing.toy_requests import (
    PAST,
    REMOVE,
    SPEC,
    beam_requests,
    edited,
    impression,
    toy_spec,
    write_csv,
    write_files,
)
from transform.errors import DataError
from transform.features import request_example
from transform.ingest.aggregates import counter, export
from transform.ingest.beam_requests import RequestExamples
from transform.spec.loading import load_spec, parse_spec

pytestmark = pytest.mark.once

DAY = 86_400_000
START = 1_650_844_800_000  # 25 April 2022, 0:00 UTC
REPOSITORY = Path(__file__).parents[3]
BLOCK = {"keys": [["item"]], "tasks": ["click"], "windows": ["1d", "2d", "all"], "smoothing": 10}
NAN = math.nan


def counting_spec(*blocks, **changes):
    return toy_spec({"aggregates": list(blocks) or [BLOCK], "sequences": [], **changes})


def shown(item, day, hours=12, user="u1", **values):
    """An impression on a day from 1 on, at some hour of it in UTC."""
    return impression(item, START + (day - 1) * DAY + round(hours * 3_600_000), day=day, user=user, **values)


def features_by_request(spec, folder, **options):
    """The values of all requests, by request id."""
    by_split, _ = beam_requests(spec, folder, **options)
    requests = [request_example.decode(record) for found in by_split.values() for record in found]
    return {values["request_id"][0]: values for values in requests}


def rate(positives, observed, all_positives, all_observed, smoothing=10):
    return (positives + smoothing * all_positives / all_observed) / (observed + smoothing)


def near(*values):
    return pytest.approx(list(values), rel=1e-6, nan_ok=True)


# === Against pandas, on real impressions ===

REAL_BLOCKS = [
    {
        "keys": [["video_id"], ["author_id"], ["user_id"], ["user_id", "tab"], ["tab", "hour"]],
        "tasks": ["click", "long_view", "like"],
        "windows": ["1d", "3d", "all"],
        "timezone": "Asia/Shanghai",
    },
    {"keys": [["user_id"]], "tasks": ["profile_enter"], "windows": ["7d"], "smoothing": 3, "timezone": "Asia/Shanghai"},
]
REAL_FILES = {"log": "log.csv.gz", "item": "video_features_basic.csv.gz", "past": "user_history_until_4_24.csv.gz"}


@pytest.fixture(scope="module")
@costly("slow")
def real():
    """Spec, data folder, requests by id, and the events that pandas finds in the files."""
    folder = REPOSITORY / "data" / "kuairand_pure_mini"
    content = yaml.safe_load((REPOSITORY / "data" / "kuairand_mini.yaml").read_text())
    spec = parse_spec(yaml.safe_dump({**content, "aggregates": REAL_BLOCKS}))
    files = {name: pd.read_csv(folder / file, dtype=str, keep_default_na=False) for name, file in REAL_FILES.items()}
    log = files["log"].drop_duplicates()
    assert len(log) > 10_000
    log = log.rename(columns={task.label: task.name for task in spec.tasks} | {"hourmin": "hour"})
    log["day"] = _days(log["time_ms"])
    past = files["past"]
    lists = past["impressions"].str.split()
    past = past.loc[past.index.repeat(lists.str.len())].assign(video_id=lists.explode().to_numpy())
    for task, column in (("long_view", "long_views"), ("like", "likes")):
        past[task] = [str(int(item in held.split())) for item, held in zip(past["video_id"], past[column], strict=True)]
    past = past.assign(past=True, day=_days(past["last_time_ms"]))
    events = pd.concat([log.assign(past=False), past[["user_id", "video_id", "day", "past", "long_view", "like"]]])
    events = events.merge(files["item"][["video_id", "author_id"]], how="left", on="video_id").reset_index()
    for task in spec.task_names:
        events[task] = pd.to_numeric(events[task])
    return spec, str(folder), features_by_request(spec, folder), events


def _days(milliseconds):
    at = pd.to_datetime(milliseconds.astype("int64"), unit="ms", utc=True).dt.tz_convert("Asia/Shanghai")
    return at.map(lambda moment: moment.toordinal())


def compare_with_pandas(spec, requests, events):
    first = events[~events["past"]].groupby(["user_id", "date"])["time_ms"].min().astype("int64")
    days = {key: _days(pd.Series([time]))[0] for key, time in zip(requests, first.loc[_ids(requests)], strict=True)}
    features = spec.aggregate_features()
    for key, task in dict.fromkeys((feature.key, feature.task) for feature in features):
        rows = []
        for name, request in requests.items():
            columns = [request[part] for part in key]
            n = max(map(len, columns))
            rows += [(*parts, days[name]) for parts in zip(*(c * (n // len(c)) for c in columns), strict=True)]
        asked = pd.DataFrame(rows, columns=[*key, "day"])
        known = events[events[task].notna()]
        priors = {day: known.loc[known["day"] < day, task].mean() for day in asked["day"].unique()}
        sums = known.groupby([*key, "day", "past"])[task].agg(["sum", "count"]).reset_index()
        pairs = asked.drop_duplicates().merge(sums, on=list(key), suffixes=("", "_of_event"))
        pairs = pairs[pairs["day_of_event"] < pairs["day"]]
        for feature in features:
            if (feature.key, feature.task) == (key, task):
                expected = reference(pairs, feature, asked, priors)
                values = np.concatenate([request[feature.name] for request in requests.values()])
                np.testing.assert_allclose(values, expected, rtol=1e-6, err_msg=feature.name)
                assert np.nanstd(expected) > 0, "values that differ, or equality says nothing"


def reference(pairs, feature, asked, priors):
    """The feature of (parts, day) rows, from the events before the day that have the same parts."""
    if feature.window != "all":
        pairs = pairs[~pairs["past"] & (pairs["day_of_event"] >= pairs["day"] - int(feature.window[:-1]))]
    found = pairs.groupby([*feature.key, "day"])[["sum", "count"]].sum()
    rows = asked.merge(found, how="left", on=[*feature.key, "day"]).fillna({"sum": 0, "count": 0})
    if feature.statistic == "count":
        return rows["count"].to_numpy()
    smoothed = rows["sum"] + feature.smoothing * rows["day"].map(priors)
    return (smoothed / (rows["count"] + feature.smoothing)).to_numpy()


def _ids(requests):
    return [tuple(request_id.split("|")) for request_id in requests]


def test_every_key_task_and_window_is_what_pandas_counts(real):
    spec, _, requests, events = real
    assert len(spec.aggregate_features()) == 5 * 3 * 3 * 2 + 2
    compare_with_pandas(spec, requests, events)


def test_a_cut_off_that_is_a_day_late_is_found(real):
    spec, _, requests, events = real
    with pytest.raises(AssertionError, match="video_id_click_1d_rate"):
        compare_with_pandas(spec, requests, events.assign(day=events["day"] - 1))


def test_the_exported_table_is_what_requests_of_the_day_have(real, tmp_path):
    spec, data_dir, requests, _ = real
    day = date(2022, 5, 5)
    export.export_tables(spec, data_dir, day, str(tmp_path / "table"))
    zone = ZoneInfo("Asia/Shanghai")
    of_day = [
        values
        for values in requests.values()
        if datetime.fromtimestamp(values["request_time"][0] / 1000, zone).date() == day
    ]
    assert len(of_day) > 300
    unseen = 0
    for key in counter.AggregateColumns(spec).keys:
        table = pd.read_parquet(tmp_path / "table" / f"{'-'.join(key.parts)}.parquet")
        names = [feature.name for feature in key.features]
        assert list(table) == [*key.parts, *names]
        is_unseen = table[list(key.parts)].isna().all(axis=1)
        (default,) = table.loc[is_unseen, names].itertuples(index=False)
        by_key = {
            tuple(row[: len(key.parts)]): row[len(key.parts) :] for row in table[~is_unseen].itertuples(index=False)
        }
        assert len(by_key) == len(table) - 1
        for values in of_day:
            columns = [values[part] for part in key.parts]
            n = max(map(len, columns))
            for place, parts in enumerate(zip(*(c * (n // len(c)) for c in columns), strict=True)):
                unseen += parts not in by_key
                row = by_key.get(parts, default)
                np.testing.assert_allclose([values[name][place] for name in names], row, rtol=1e-6)
    assert unseen > 20


# === Point in time ===

LOG = [
    shown("a", 1, user="u1", clicked="1"),
    shown("b", 1, user="u2", clicked="0"),
    shown("a", 2, user="u1", clicked="0"),
    shown("a", 2, user="u2", clicked="1"),
    shown("a", 3, hours=9, user="u2", clicked="1"),
    shown("a", 3, user="u1", clicked="1"),
    shown("b", 3, hours=12.1, user="u1", clicked="1"),
    shown("a", 4, user="u1", clicked="0"),
]


def test_windows_end_before_the_day_of_the_request(tmp_path):
    found = features_by_request(counting_spec(), write_files(tmp_path, LOG))
    of = found["u1|3"]
    assert of["item_click_1d_count"] == [2, 0]
    assert of["item_click_2d_count"] == [3, 1]
    assert of["item_click_all_count"] == [3, 1]
    assert of["item_click_1d_rate"] == near(rate(1, 2, 2, 4), rate(0, 0, 2, 4))
    assert of["item_click_all_rate"] == near(rate(2, 3, 2, 4), rate(0, 1, 2, 4))
    assert found["u1|4"]["item_click_2d_count"] == [4]
    assert found["u1|4"]["item_click_all_rate"] == near(rate(4, 5, 5, 7))


def test_with_nothing_before_there_is_no_rate(tmp_path):
    folder = write_files(tmp_path, LOG)
    found = features_by_request(counting_spec(), folder)["u1|1"]
    assert found["item_click_all_rate"] == near(NAN)
    assert found["item_click_all_count"] == [0]
    assert beam_requests(counting_spec(), folder)[1]["requests_with_nothing_counted_before"] == 2


def labels_turned(day, after_hour=-1.0):
    from_time = START + (day - 1) * DAY + after_hour * 3_600_000
    return [
        {**row, "clicked": str(1 - int(row["clicked"]))} if row["day"] == day and row["time"] >= from_time else row
        for row in LOG
    ]


def features_of_day(spec, folder, log, day):
    folder.mkdir()
    return {
        key: {feature.name: values[feature.name] for feature in spec.aggregate_features()}
        for key, values in features_by_request(spec, write_files(folder, log)).items()
        if key.endswith(f"|{day}")
    }


@pytest.mark.slow
@pytest.mark.parametrize("day", [3, 4])
def test_labels_of_the_own_day_and_of_later_ones_are_never_seen(tmp_path, day):
    """Not even those of other users, hours before: a server knows them the day after."""
    spec = counting_spec()
    before = features_of_day(spec, tmp_path / "before", LOG, 3)
    assert features_of_day(spec, tmp_path / "after", labels_turned(day), 3) == before
    assert features_of_day(spec, tmp_path / "earlier", labels_turned(1), 3) != before


def test_a_cut_off_that_lets_the_own_day_in_is_found(tmp_path, monkeypatch):
    honest = counter.Timeline.before
    monkeypatch.setattr(counter.Timeline, "before", lambda self, day, window: honest(self, day + 1, window))
    spec = counting_spec()
    before = features_of_day(spec, tmp_path / "before", LOG, 3)
    assert features_of_day(spec, tmp_path / "after", labels_turned(3), 3) != before


def test_a_day_begins_at_midnight_in_the_time_zone(tmp_path):
    """17:00 UTC is past midnight in Shanghai, and so is of the request's own day there."""
    log = [shown("a", 1, hours=15, user="u2", clicked="1"), shown("a", 1, hours=17, user="u2"), shown("a", 2, hours=2)]
    assert features_by_request(counting_spec(), write_files(tmp_path, log))["u1|2"]["item_click_1d_count"] == [2]
    local = counting_spec({**BLOCK, "timezone": "Asia/Shanghai"})
    assert features_by_request(local, tmp_path)["u1|2"]["item_click_1d_count"] == [1]


def test_a_request_over_several_days_sees_nothing_from_its_first_day_on(tmp_path):
    log = [
        shown("a", 1, user="u2", clicked="1"),
        shown("a", 2, hours=23, visit="v"),
        shown("a", 3, hours=1, user="u2", clicked="1"),
        shown("a", 4, hours=1, visit="v"),
    ]
    log = [{"visit": f"other {place}", **row} for place, row in enumerate(log)]
    spec = counting_spec(**{"request": {"id": "visit", "time": "time"}})
    assert features_by_request(spec, write_files(tmp_path, log))["v"]["item_click_all_count"] == [1, 1]


# === What is counted ===


def test_exact_duplicates_count_once(tmp_path):
    log = [*LOG, *LOG[:4], LOG[0]]
    found = features_by_request(counting_spec(), write_files(tmp_path, log))["u1|4"]
    assert found["item_click_all_count"] == [5]
    doubled = features_by_request(counting_spec(**{"data.drop_duplicates": False}), tmp_path)["u1|4"]
    assert doubled["item_click_all_count"] == [5 + 4]


def test_labels_that_are_missing_or_not_observed_do_not_count(tmp_path):
    block = {**BLOCK, "tasks": ["click", "like"], "windows": ["all"]}
    spec = counting_spec(block, **{"tasks.1.observed_when": "click"})
    log = [
        shown("a", 1, clicked="1", liked="1"),
        shown("a", 1, hours=13, clicked="1", liked=""),
        shown("a", 1, hours=14, clicked="0", liked="1"),
        shown("a", 1, hours=15, clicked="", liked="1"),
        shown("a", 1, hours=16, clicked="1", liked="0"),
        shown("a", 2),
    ]
    found = features_by_request(spec, write_files(tmp_path, log))["u1|2"]
    assert (found["item_click_all_count"], found["item_like_all_count"]) == ([4], [2])
    assert found["item_click_all_rate"] == near(rate(3, 4, 3, 4))
    assert found["item_like_all_rate"] == near(rate(1, 2, 1, 2))


def test_keys_of_each_group_and_key_columns_that_are_no_features(tmp_path):
    keys = [["country"], ["device", "country"], ["user"], ["genre", "device"]]
    spec = counting_spec({**BLOCK, "keys": keys, "windows": ["all"]})
    groups = {feature.key: group for group, feature in spec.feature_groups() if feature.name.endswith("_count")}
    assert groups == {
        ("country",): "user",
        ("device", "country"): "context",
        ("user",): "user",
        ("genre", "device"): "candidate",
    }
    log = [*LOG, shown("b", 1, hours=20, user="u1", device="pc", clicked="1")]
    log = [row for row in log if row["day"] != 1 or row["user"] == "u1"]
    log += [shown("a", 1, user="nobody", clicked="1"), shown("a", 1, user="", device="pc")]
    with pytest.raises(DataError, match="constant"):
        features_by_request(spec, write_files(tmp_path, log))
    log[-3]["device"] = "tv"
    found = features_by_request(spec, write_files(tmp_path, log))
    of = found["u1|2"]
    assert of["country_click_all_count"] == [2] and of["device_country_click_all_count"] == [2]
    assert of["user_click_all_count"] == [2]
    assert of["genre_device_click_all_count"] == [1 + 1]
    assert found["u2|2"]["user_click_all_count"] == [0]
    assert "user" not in found["u1|2"], "only features are written"
    assert all(values[name] for values in found.values() for name in values if name.endswith(("_count", "_rate")))


def test_a_missing_part_is_a_key_that_was_never_seen(tmp_path):
    log = [shown("a", 1, clicked="1"), shown("?", 1, hours=13), shown("?", 2), shown("a", 2, hours=13)]
    spec = counting_spec({**BLOCK, "keys": [["genre"]], "windows": ["all"]})
    found = features_by_request(spec, write_files(tmp_path, log))["u1|2"]
    assert found["genre"] == ["", "g_a"]
    assert found["genre_click_all_count"] == [0, 1]
    assert found["genre_click_all_rate"] == near(rate(0, 0, 1, 2), rate(1, 1, 1, 2))


def test_candidates_of_a_request_in_parts_have_their_own(tmp_path):
    log = [*LOG, *(shown(item, 5, hours=13 + n, user="u2") for n, item in enumerate("abcab"))]
    spec = counting_spec(**{"request.max_candidates": 2, "split.test": [4, 5]})
    by_split, _ = beam_requests(spec, write_files(tmp_path, log))
    parts = [request_example.decode(record) for record in by_split["test"]]
    found = [
        pair
        for values in parts
        for pair in zip(values["item"], values["item_click_all_count"], strict=True)
        if values["request_id"] == ["u2|5"]
    ]
    assert sorted(found) == [("a", 6), ("a", 6), ("b", 2), ("b", 2), ("c", 0)]


# === The past ===

PAST_BLOCK = {
    "keys": [["item"], ["country"], ["genre", "country"], ["item", "device"]],
    "tasks": ["click", "like"],
    "windows": ["7d", "all"],
    "smoothing": 10,
}


def past_features(tmp_path, log, past, **changes):
    spec = toy_spec({"aggregates": [PAST_BLOCK], "data.past": {**PAST, **changes}})
    return features_by_request(spec, write_files(tmp_path, log, past))


def test_the_past_counts_in_all_for_the_tasks_and_keys_that_it_knows(tmp_path):
    past = [
        {"user": "u1", "until": START - 1, "items": "a b a c", "loved": "a"},
        {"user": "stranger", "until": START - DAY, "items": "b b", "loved": "b"},
    ]
    log = [shown("b", 1, user="u2", clicked="1"), shown("a", 2, hours=1), shown("b", 2, hours=2)]
    found = past_features(tmp_path, log, past)["u1|2"]
    assert found["item_like_7d_count"] == [0, 1]
    assert found["item_like_all_count"] == [2, 1 + 2 + 1]
    assert found["item_like_all_rate"] == near(rate(2, 2, 4, 7), rate(2, 4, 4, 7))
    assert found["country_like_all_count"] == [4], "a user that the user table does not know has no country"
    assert found["genre_country_like_all_count"] == [2, 1]
    assert found["item_click_all_count"] == [0, 1], "the past does not know clicks"
    assert found["item_click_all_rate"] == near(rate(0, 0, 1, 1), rate(1, 1, 1, 1))
    assert found["item_device_like_all_count"] == [0, 1], "the past does not know devices"


def test_a_past_that_ends_on_the_day_of_the_request_or_later_is_not_seen(tmp_path):
    past = [{"user": "u2", "until": START + DAY + 5, "items": "a a a", "loved": "a"}]
    log = [shown("a", 1), shown("a", 2), shown("a", 3)]
    found = past_features(tmp_path, log, past)
    assert [found[f"u1|{day}"]["item_like_all_count"] for day in (1, 2, 3)] == [[0], [1], [1 + 1 + 3]]


def test_rows_that_the_past_holds_too_count_once(tmp_path):
    """From the day on from which the past is there; until then they stand for themselves."""
    past = [{"user": "u1", "until": START + DAY + DAY // 2, "items": "a a", "loved": "a"}]
    log = [shown("a", 1, liked="1"), shown("a", 2, liked="1"), shown("a", 3, hours=1, liked="1"), shown("a", 4)]
    found = past_features(tmp_path, log, past)
    of = [found[f"u1|{day}"] for day in (1, 2, 3, 4)]
    assert [values["item_like_all_count"] for values in of] == [[0], [1], [2], [3]]
    assert [values["item_like_7d_count"] for values in of] == [[0], [1], [2], [3]]
    assert [values["item_click_all_count"] for values in of] == [[0], [1], [2], [3]]
    assert of[3]["item_like_all_rate"] == near(1.0)


def test_a_past_without_a_time_is_before_everything(tmp_path):
    past = [{"user": "u2", "items": "a", "loved": "a"}]
    spec = toy_spec({"aggregates": [PAST_BLOCK], "data.past": PAST, "data.past.time": REMOVE})
    found = features_by_request(spec, write_files(tmp_path, [shown("a", 1)], past))["u1|1"]
    assert found["item_like_all_count"] == [1]
    assert found["item_like_7d_rate"] == near(1.0), "there is a rate of everything before"
    assert found["item_click_all_rate"] == near(NAN)


def test_tasks_that_the_past_can_not_know_to_be_observed_do_not_count(tmp_path):
    past = [{"user": "u2", "until": START - 1, "items": "a", "loved": "a"}]
    spec = toy_spec({"aggregates": [PAST_BLOCK], "data.past": PAST, "tasks.1.observed_when": "click"})
    found = features_by_request(spec, write_files(tmp_path, [shown("a", 1)], past))["u1|1"]
    assert found["item_like_all_count"] == [0]


# === Preprocessing ===


def test_rates_become_log_odds_and_buckets_and_counts_logarithms(small_aggregates):
    """`share` is not known before the second day: the rates of the first are missing."""
    spec, name = small_aggregates.spec, "user_brand_share_all"
    records = tf.data.TFRecordDataset(small_aggregates.raw["train"], "GZIP")
    train = [request_example.decode(record.numpy()) for record in records]
    rates, numbers = (
        np.concatenate([request[f"{name}_{statistic}"] for request in train]) for statistic in ("rate", "count")
    )
    there = ~np.isnan(rates)
    assert 0 < there.sum() < len(rates)
    request = next(request for request in train if request["candidate_count"] == [4])
    request = {**request, f"{name}_rate": [NAN, 0.0, 0.5, 1.0], f"{name}_count": [0.0, 1.0, 2.0, 3.0]}
    (found,) = transformed(small_aggregates.transform_output, [request], spec)
    odds = np.log(rates[there] / (1 - rates[there]))
    expected = (np.array([math.log(1e-6), 0.0, -math.log(1e-6)]) - odds.mean()) / odds.std()
    np.testing.assert_allclose(found[f"{name}_rate"], [0.0, *expected], rtol=1e-4)
    logs = np.log1p(numbers[there])
    np.testing.assert_allclose(found[f"{name}_count"], (np.log1p([0, 1, 2, 3]) - logs.mean()) / logs.std(), rtol=1e-4)
    buckets = found[f"{name}_rate_bucket"]
    assert buckets[:2] == [0, 1] and buckets[3] == 4
    sizes = small_aggregates.inputs().rows
    assert (sizes["item_buy_2d_rate.bucket"], sizes[f"{name}_rate.bucket"]) == (11, 5)


@pytest.mark.slow
def test_features_that_no_training_request_has_are_finite(tmp_path):
    """As where all training data are of one day."""
    spec = counting_spec(**{"features.context": [], "features.candidate": [{"name": "item", "type": "categorical"}]})
    names = [feature.name for feature in spec.aggregate_features()]
    requests = [
        {
            **{"request_id": [f"r{n}"], "candidate_count": [1], "country": ["at"], "age": [1.0], "item": ["a"]},
            **{
                key(task): [1.0]
                for task in spec.task_names
                for key in (request_example.label_key, request_example.weight_key)
            },
            **{name: [NAN if name.endswith("_rate") else 0.0] for name in names},
        }
        for n in range(3)
    ]
    output = analysed(spec, requests, tmp_path)
    served = {**requests[0], **{name: [0.25] for name in names}}
    for values in transformed(output, [requests[0], served], spec):
        assert np.isfinite([values[name][0] for name in names]).all()
        assert all(0 <= values[f"{name}_bucket"][0] <= 10 for name in names)


def test_every_bucket_has_its_share(small_aggregates):
    tensors = [
        tf.io.parse_example(record, {"item_buy_2d_rate_bucket": tf.io.VarLenFeature(tf.int64)})
        for record in tf.data.TFRecordDataset(small_aggregates.transformed["train"], "GZIP")
    ]
    buckets = np.concatenate([tensor["item_buy_2d_rate_bucket"].values.numpy() for tensor in tensors])
    shares = np.bincount(buckets, minlength=11)[1:] / (buckets > 0).sum()
    assert len(shares) == 10 and shares.max() < 0.3, "equal rates share a bucket"


# === Tables ===


@pytest.fixture
def toy(tmp_path):
    spec = tmp_path / "toy.yaml"
    spec.write_text(yaml.safe_dump(edited(SPEC, {"aggregates": [BLOCK, {**BLOCK, "tasks": ["like"], "smoothing": 1}]})))
    (tmp_path / "data").mkdir()
    return spec, write_files(tmp_path / "data", LOG)


def exported(toy, output, *extra, as_of="2022-04-27"):
    spec, data = toy
    return export.main(["--spec", str(spec), "--data", str(data), "--as_of", as_of, "--output", str(output), *extra])


def test_from_the_shell_a_table_a_key_with_a_row_for_the_unseen(toy, tmp_path, capsys):
    assert exported(toy, tmp_path / "table") == 0
    assert "item.parquet: 3 rows" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "table")) == ["aggregates.json", "item.parquet"]
    assert json.loads((tmp_path / "table" / "aggregates.json").read_text())["as_of"] == "2022-04-27"
    table = pd.read_parquet(tmp_path / "table" / "item.parquet").set_index("item")
    spec = load_spec(toy[0])
    assert list(table) == [feature.name for feature in spec.aggregate_features()]
    assert table.loc["a", "item_click_all_count"] == 3
    assert table.loc["a", "item_click_all_rate"] == pytest.approx(rate(2, 3, 2, 4))
    assert table.loc["b", "item_click_1d_count"] == 0
    (unseen,) = (row for _, row in table[table.index.isna()].iterrows())
    assert unseen["item_click_1d_rate"] == 0.5 and unseen["item_click_all_count"] == 0
    assert unseen["item_like_all_rate"] == 0


def test_a_table_of_the_first_day_holds_the_unseen_alone(toy, tmp_path):
    assert exported(toy, tmp_path / "table", as_of="2022-04-25") == 0
    table = pd.read_parquet(tmp_path / "table" / "item.parquet")
    assert len(table) == 1 and table["item_click_all_rate"].isna().all() and table["item"].isna().all()


@pytest.mark.slow
def test_requests_take_a_table_s_values_whatever_their_day(toy, tmp_path):
    spec = load_spec(toy[0])
    assert exported(toy, tmp_path / "table") == 0
    found, seen = {}, {}
    import apache_beam as beam

    from tests.testing import toy_requests

    toy_requests._COLLECTED.clear()
    with beam.Pipeline() as pipeline:
        built = pipeline | RequestExamples(spec, str(toy[1]), table=str(tmp_path / "table"))
        for name, collection in built.items():
            _ = collection | f"Collect[{name}]" >> beam.Map(toy_requests._collect, name)
    (seen,) = toy_requests._COLLECTED.pop("counts")
    for record in (record for records in toy_requests._COLLECTED.values() for record in records):
        values = request_example.decode(record)
        found[values["request_id"][0]] = values
    counted = features_by_request(spec, toy[1])
    for feature in spec.aggregate_features():
        assert found["u1|3"][feature.name] == counted["u1|3"][feature.name]
        assert found["u1|4"][feature.name] == counted["u1|3"][feature.name][:1]
    assert seen["requests_of_other_days_than_the_table"] == len(found) - 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"as_of": "27.4.2022"}, ["--as_of", "`27.4.2022`", "2022-05-06"]),
        ({"as_of": "2022-04-31"}, ["--as_of", "`2022-04-31`"]),
    ],
)
def test_exports_that_can_not_be_are_refused(toy, tmp_path, capsys, arguments, words):
    assert exported(toy, tmp_path / "table", **arguments) == 1
    assert_told(capsys, tmp_path, *words)


def assert_told(capsys, folder, *words):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert sorted(os.listdir(folder)) == ["data", "toy.yaml"], "nothing is left behind"


def test_an_export_without_aggregates_is_refused(toy, tmp_path, capsys):
    toy[0].write_text(yaml.safe_dump(SPEC))
    assert exported(toy, tmp_path / "table") == 1
    assert_told(capsys, tmp_path, "aggregates: blocks with keys", "Add the section")


def test_an_export_of_broken_rows_leaves_nothing(toy, tmp_path, capsys):
    write_csv(toy[1] / "log.csv", [*LOG, {**LOG[0], "clicked": "2"}])
    assert exported(toy, tmp_path / "table") == 1
    assert_told(capsys, tmp_path, "log.csv:10", "`clicked`", "Received: `2`")


def test_a_time_of_no_calendar_is_refused(toy, tmp_path, capsys):
    write_csv(toy[1] / "log.csv", [*LOG, {**LOG[0], "time": 10**18}])
    assert exported(toy, tmp_path / "table") == 1
    assert_told(capsys, tmp_path, "log.csv:10", "epoch milliseconds", "1000000000000000000")


def test_a_folder_that_is_there_is_kept(toy, tmp_path, capsys):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "mine").touch()
    assert exported(toy, tmp_path / "table") == 1
    assert "--output: a folder that is not there yet" in capsys.readouterr().err
    assert os.listdir(tmp_path / "table") == ["mine"]


def test_a_table_of_other_features_is_refused(toy, tmp_path):
    assert exported(toy, tmp_path / "table") == 0
    other = toy_spec({"aggregates": [BLOCK]})
    with pytest.raises(DataError, match="a table of the model's own aggregate features"):
        RequestExamples(other, str(toy[1]), table=str(tmp_path / "table"))
    with pytest.raises(DataError, match="holds no aggregates.json"):
        RequestExamples(other, str(toy[1]), table=str(tmp_path))


def test_a_table_for_a_model_without_counting_features_is_refused(toy, tmp_path):
    with pytest.raises(DataError, match="a model with aggregate features is expected"):
        RequestExamples(toy_spec(), str(toy[1]), table=str(tmp_path))


def test_a_log_without_labels_needs_a_table(toy):
    rows = [{key: value for key, value in row.items() if key not in ("clicked", "liked", "shared")} for row in LOG]
    write_csv(toy[1] / "log.csv", rows)
    with pytest.raises(DataError, match="a log with labels to count, or an exported table"):
        RequestExamples(load_spec(toy[0]), str(toy[1]), for_scoring=True)


def test_days_are_those_of_the_calendar():
    spec = counting_spec({**BLOCK, "timezone": "America/New_York"})
    for moment in (START, START + 5 * 3_600_000, 0, -1):
        local = datetime.fromtimestamp(moment / 1000, timezone.utc).astimezone(ZoneInfo("America/New_York"))
        assert counter.AggregateColumns(spec).day(moment, "here") == local.toordinal()
