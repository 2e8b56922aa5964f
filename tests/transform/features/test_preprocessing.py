"""From request examples to batches: what TensorFlow Transform makes of them, checked against numpy."""

import datetime
import math
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from tests.testing import analysis
from tests.testing.analysis import analysed, encoded
from tests.testing.toy_requests import toy_spec
from transform.errors import DataError
from transform.feature_types.categorical import LARGEST_VOCABULARY
from transform.features import request_example
from transform.features.batching import LabelCounts, count_labels, count_requests, request_batches
from transform.features.dataset import parse_transformed, to_batch, to_targets, transformed_dtypes
from transform.features.model_inputs import (
    ModelInputs,
    columns,
    table_rows,
)
from transform.spec.loading import parse_spec

NAN = math.nan
SPEC = parse_spec("""
name: toy
data: {impressions: {files: [log.csv]}, tables: {user: {key: user}, item: {key: item}}}
request: {id: request, time: time}
split: {by: day, train: [1, 2], eval: [3, 3], test: [4, 4]}
tasks: [{name: click, label: clicked}, {name: like, label: liked}]
features:
  user: [{name: country, type: categorical, vocabulary: {top_k: 2}}, {name: age, type: numeric}]
  context: [{name: hour, type: numeric, transform: identity}]
  candidate:
    - {name: item, type: categorical, vocabulary: {name: things, min_frequency: 3, oov: 3}, dim: 8}
    - {name: part_of, type: categorical, vocabulary: things, dim: 8}
    - {name: tags, type: categorical_set, dim: 4}
    - {name: price, type: numeric, transform: log_z}
    - {name: duration, type: numeric, transform: quantiles, buckets: 4, dim: 3}
sequences:
  - {name: seen, length: 4, features: [item, price, duration], feedback: [click]}
  - {name: loved, role: anchor, length: 2, features: [part_of]}
""")
INPUTS = ModelInputs.from_spec(SPEC, lambda _: 5)
USER, CONTEXT = ("country", "age"), ("hour",)
SEEN = ("seen_item", "seen_price", "seen_duration", "seen_click")
CANDIDATE = ("item", "part_of", "tags", "tags_length", "price", "duration", "candidate_count")
OOV = "an item that the training data do not hold"
FLOATS = {"age", "hour", "price", "duration", "seen_price", "seen_duration", "seen_click"}


def request(n, u=0, **values):
    """A request of n candidates and u seen events; what is not said is missing."""
    blank = {key: [NAN if key in FLOATS else ""] for key in (*USER, *CONTEXT)}
    blank.update({key: [NAN if key in FLOATS else ""] * n for key in ("item", "part_of", "price", "duration")})
    blank.update({key: [NAN if key in FLOATS else ""] * u for key in SEEN})
    blank.update(tags=[], tags_length=[0] * n, loved_part_of=[], candidate_count=[n])
    for task in SPEC.task_names:
        blank.update({request_example.label_key(task): [0.0] * n, request_example.weight_key(task): [1.0] * n})
    return {**blank, **values}


def training_requests():
    """Twenty requests with missing values of every kind."""
    chance = np.random.default_rng(3)
    names = [f"i{number}" for number in range(12)]

    def some(values, count, missing):
        picked = [values[int(place)] for place in chance.random(count) ** 2 * len(values)]  # the first more often
        return [missing if chance.random() < 0.15 else value for value in picked]

    found = [request(1), request(2, u=3), request(3, u=9)]
    for _ in range(17):
        n, u = int(chance.integers(1, 6)), int(chance.integers(0, 7))
        sizes = chance.integers(0, 4, n)
        found.append(
            request(
                n,
                u,
                country=some(["at"] * 4 + ["nz"] * 2 + ["us"], 1, ""),
                age=some([20.0, 30.0, 41.0, 77.0], 1, NAN),
                hour=some([0.0, 5.0, 23.0], 1, NAN),
                item=some(names, n, ""),
                part_of=some(["i0", "i1", "box"], n, ""),
                tags=[f"t{tag}" for tag in chance.integers(0, 5, int(sizes.sum()))],
                tags_length=[int(size) for size in sizes],
                price=some([-9.0, 0.0, 1.0, 50.0, 4000.0], n, NAN),
                duration=[float(value) if chance.random() < 0.85 else NAN for value in chance.normal(size=n)],
                seen_item=some(names, u, ""),
                seen_price=some([0.0, 7.0, 1e6], u, NAN),
                seen_duration=some([-0.5, 0.0, 0.5], u, NAN),
                seen_click=some([0.0, 1.0], u, NAN),
                loved_part_of=some(["i2", "i3", "crate"], int(chance.integers(0, 4)), ""),
                label_click=[float(label) for label in chance.integers(0, 2, n)],
                label_like=[float(label) for label in chance.integers(0, 2, n)],
                weight_like=[float(weight) for weight in chance.integers(0, 2, n)],
            )
        )
    return [{**values, "request_id": [f"r{place}"]} for place, values in enumerate(found)]


TRAIN = training_requests()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What analysis of the training requests gave, and the transformed requests by Beam."""
    folder = tmp_path_factory.mktemp("transform")
    transform = analysed(SPEC, TRAIN, folder, folder / "transformed.gz")
    (path,) = folder.glob("transformed.gz*")
    records = list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator())
    return transform, records


@pytest.fixture(scope="module")
def transform(written):
    return written[0]


def transformed(transform, requests, spec=SPEC):
    return analysis.transformed(transform, requests, spec)


def gathered(requests, *keys):
    return [value for values in requests for key in keys for value in values[key]]


def present(requests, key):
    return np.array([value for value in gathered(requests, key) if not math.isnan(value)])


def ids_of(transform, name):
    return {token.decode(): place + 1 for place, token in enumerate(transform.vocabulary_by_name(name))}


# === Vocabularies ===


def test_shared_vocabulary_counts_candidates_and_sequences(transform):
    counts = Counter(gathered(TRAIN, "item", "part_of", "seen_item", "loved_part_of"))
    del counts[""]
    frequent = {name for name, count in counts.items() if count >= 3}
    assert 3 < len(frequent) < len(counts)
    ids = ids_of(transform, "things")
    assert set(ids) == frequent
    ordered = [counts[name] for name in sorted(ids, key=ids.get)]
    assert ordered == sorted(ordered, reverse=True)


def test_ids_are_the_same_for_all_who_share_a_vocabulary(transform):
    ids = ids_of(transform, "things")
    names = [*ids, ""]
    n = len(names)
    values = request(n, n, item=names, part_of=names[::-1], seen_item=names, loved_part_of=names)
    (found,) = transformed(transform, [values])
    expected = [*ids.values(), 0]
    assert expected[:-1] == list(range(1, n))
    assert found["item"] == found["seen_item"] == found["loved_part_of"] == expected
    assert found["part_of"] == expected[::-1]


def test_unknown_values_fall_into_the_oov_buckets(transform):
    ids = ids_of(transform, "things")
    strangers = [f"stranger {number}" for number in range(40)]
    (found,) = transformed(transform, [request(40, 40, item=strangers, seen_item=strangers)])
    assert found["item"] == found["seen_item"]
    assert set(found["item"]) == {len(ids) + bucket for bucket in (1, 2, 3)}
    rare = next(name for name in set(gathered(TRAIN, "item")) - set(ids) - {""})
    assert transformed(transform, [request(1, item=[rare])])[0]["item"][0] > len(ids)


def test_top_k_keeps_the_most_frequent(transform):
    counts = Counter(gathered(TRAIN, "country"))
    assert counts["at"] > counts["nz"] > counts["us"] > 0
    assert ids_of(transform, "country") == {"at": 1, "nz": 2}
    found = [
        values["country"] for values in transformed(transform, [request(1, country=[c]) for c in ("nz", "us", "")])
    ]
    assert found == [[2], [3], [0]]


def test_sets_keep_their_lengths(transform):
    ids = ids_of(transform, "tags")
    values = request(3, tags=["t1", OOV, "t0"], tags_length=[2, 0, 1])
    (found,) = transformed(transform, [values])
    assert found["tags"] == [ids["t1"], len(ids) + 1, ids["t0"]]
    assert found["tags_length"] == [2, 0, 1]


# === Numbers ===


def test_z_score_of_what_is_there(transform):
    known = present(TRAIN, "age")
    assert len(known) < len(TRAIN)
    ages = [20.0, 35.5, NAN, 1e4]
    found = [values["age"][0] for values in transformed(transform, [request(1, age=[age]) for age in ages])]
    expected = (np.array(ages) - known.mean()) / known.std()
    np.testing.assert_allclose(found, np.nan_to_num(expected), rtol=1e-4)


def test_log_z_score_of_candidates_applies_to_events(transform):
    def scaled(values):
        return np.sign(values) * np.log1p(np.abs(values))

    known = scaled(present(TRAIN, "price"))
    prices = [-9.0, 0.0, 3.0, NAN, 1e7]
    (found,) = transformed(transform, [request(5, 5, price=prices, seen_price=prices[::-1])])
    expected = np.nan_to_num((scaled(np.array(prices)) - known.mean()) / known.std())
    np.testing.assert_allclose(found["price"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["seen_price"], expected[::-1], rtol=1e-4, atol=1e-6)


def test_identity_passes_values_and_a_missing_one_is_zero(transform):
    found = transformed(transform, [request(1, hour=[hour]) for hour in (-2.5, NAN, 23.0)])
    assert [values["hour"] for values in found] == [[-2.5], [0.0], [23.0]]


def test_quantiles_share_the_values_out_evenly(transform):
    known = np.sort(present(TRAIN, "duration"))
    n = len(known)
    assert len(set(known)) == n > 30
    (found,) = transformed(transform, [request(n, duration=list(known))])
    buckets = np.array(found["duration"])
    assert (np.diff(buckets) >= 0).all()
    sizes = np.bincount(buckets, minlength=5)
    assert sizes[0] == 0 and len(sizes) == 5
    assert np.abs(sizes[1:] - n / 4).max() <= 1.5


def test_missing_values_have_the_bucket_zero(transform):
    values = [NAN, -1e9, 1e9, NAN]
    (found,) = transformed(transform, [request(4, 4, duration=values, seen_duration=values[::-1])])
    assert found["duration"] == [0, 1, 4, 0]
    assert found["seen_duration"] == [0, 4, 1, 0]


# === What passes ===


def test_feedback_is_unknown_no_or_yes(transform):
    (found,) = transformed(transform, [request(1, 4, seen_click=[NAN, 0.0, 1.0, NAN])])
    assert found["seen_click"] == [0, 1, 2, 0]


def test_labels_weights_and_counts_pass_as_they_are(transform):
    values = request(3, label_click=[0.0, 1.0, 0.0], label_like=[1.0, 0.0, 0.0], weight_like=[1.0, 0.0, 0.0])
    (found,) = transformed(transform, [values])
    for key in ("label_click", "label_like", "weight_click", "weight_like", "candidate_count"):
        assert found[key] == values[key]


def test_empty_sequences_stay_empty_and_zeros_are_not_dropped(transform):
    """tf.sparse.from_dense and its like lose what is 0 or an empty text."""
    requests = [request(2), request(1, 3, seen_item=["", "i0", ""], seen_price=[NAN, 0.0, NAN])]
    empty, mixed = transformed(transform, requests)
    assert [empty[key] for key in (*SEEN, "loved_part_of", "tags")] == [[]] * 6
    assert [len(mixed[key]) for key in SEEN] == [3] * 4
    assert mixed["seen_item"][0] == 0 and mixed["seen_item"][1] > 0
    assert len(empty["item"]) == 2 and empty["item"] == [0, 0]


def test_keys_and_dtypes_are_those_that_models_expect(transform):
    raw = tf.io.parse_example(encoded(TRAIN[:1]), request_example.raw_feature_spec(SPEC))
    found = {key: tensor.dtype for key, tensor in transform.transform_raw_features(raw).items()}
    assert found == {**transformed_dtypes(INPUTS), **request_example.target_dtypes(SPEC.task_names)}


@pytest.mark.parametrize("keys", [(*USER, *SEEN, "loved_part_of"), CANDIDATE, CONTEXT, ("seen_item",)])
def test_each_group_is_computed_without_the_others(transform, keys):
    """A signature that knows some of the inputs gets the features of exactly these."""
    raw = tf.io.parse_example(encoded(TRAIN), request_example.raw_feature_spec(SPEC, targets=False))
    everything = transform.transform_raw_features(raw)
    some = transform.transform_raw_features({key: raw[key] for key in keys}, drop_unused_features=True)
    assert set(some) == set(keys)
    for key in keys:
        np.testing.assert_array_equal(some[key].values, everything[key].values)


def test_beam_and_serving_compute_the_same(written):
    transform, records = written
    fields = {**transformed_dtypes(INPUTS), **request_example.target_dtypes(SPEC.task_names)}
    by_beam = [{key: request_example.decode(record).get(key, []) for key in fields} for record in records]

    def order(values):
        return repr(sorted((key, [round(value, 4) for value in column]) for key, column in values.items()))

    served = sorted(transformed(transform, TRAIN), key=order)
    assert len(by_beam) == len(served) == 20
    for one, other in zip(sorted(by_beam, key=order), served, strict=True):
        for key in fields:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.slow
def test_columns_without_values_and_without_variance(tmp_path):
    spec = toy_spec(
        {
            "features.user": [
                {"name": "blank", "type": "categorical"},
                {"name": "bare", "type": "categorical", "vocabulary": {"oov": 0}},
                {"name": "void", "type": "numeric"},
                {"name": "void_bucket", "type": "numeric", "transform": "quantiles"},
                {"name": "still", "type": "numeric"},
            ],
            "features.context": [],
            "features.candidate": [{"name": "one", "type": "numeric", "transform": "quantiles", "buckets": 3}],
            "sequences": [],
            "tasks": [{"name": "click", "label": "clicked"}],
        }
    )
    blank = {"blank": [""], "void": [NAN], "void_bucket": [NAN], "still": [4.0], "one": [7.0], "candidate_count": [1]}
    blank.update(label_click=[0.0], weight_click=[1.0])
    requests = [{**blank, "bare": [name]} for name in ("x", "x", "y", "")]
    transform = analysed(spec, requests, tmp_path)
    for values in transformed(transform, requests, spec):
        assert (values["blank"], values["void"], values["void_bucket"], values["still"]) == ([0], [0.0], [0], [0.0])
        assert 1 <= values["one"][0] <= 3
    stranger = {**blank, "blank": ["new"], "void": [5.0], "void_bucket": [5.0], "still": [9.0], "bare": ["new"]}
    (values,) = transformed(transform, [stranger], spec)
    rows = table_rows(spec, transform.vocabulary_size_by_name)
    assert values["bare"] == [0]  # no bucket for the unknown: as if missing
    assert rows["bare"] == 3
    assert 0 < values["blank"][0] < rows["blank"]
    assert 0 < values["void_bucket"][0] < rows["void_bucket.bucket"]
    assert np.isfinite(values["void"] + values["still"]).all()


# === Times and hashes ===


def moment(text):
    return int(datetime.datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


@pytest.fixture(scope="module")
def of_times_and_hashes(tmp_path_factory):
    """What becomes of times, in a zone three and a half hours west of Greenwich, and of hashed ids."""
    times = {"name": "at", "type": "time", "periods": ["hour", "day", "week"], "utc_offset": -3.5}
    ids = {"type": "categorical", "vocabulary": {"name": "ids", "hash_buckets": 1000}}
    spec = toy_spec(
        {
            "features.user": [{"name": "uid", **ids}],
            "features.context": [],
            "features.candidate": [{"name": "iid", **ids}, times],
            "sequences": [{"name": "seen", "features": ["iid", "at"]}],
            "tasks": [{"name": "click", "label": "clicked"}],
        }
    )
    # Monday, midnight and six hours later, half past and Wednesday noon there
    there = ["2022-05-02 03:30", "2022-05-02 09:30", "2022-05-02 04:00", "2022-05-04 15:30"]
    values = {
        "uid": ["i7"],
        "iid": ["i7", "", "i8", "i9"],
        "at": [moment(text) for text in there],
        "candidate_count": [4],
        "seen_iid": ["i9", "i7"],
        "seen_at": [moment(there[1]), -1],
        "label_click": [0.0] * 4,
        "weight_click": [1.0] * 4,
    }
    transform = analysed(spec, [values], tmp_path_factory.mktemp("times"))
    return spec, transform, transformed(transform, [values], spec)[0]


def test_times_are_places_in_their_periods(of_times_and_hashes):
    _, _, values = of_times_and_hashes
    places = {"hour": [0, 0, 0.5, 0], "day": [0, 0.25, 1 / 48, 0.5], "week": [0, 1 / 28, 1 / 336, 2.5 / 7]}
    for period, expected in places.items():
        angles = 2 * np.pi * np.array(expected)
        np.testing.assert_allclose(values[f"at_{period}_sin"], np.sin(angles), atol=1e-6)
        np.testing.assert_allclose(values[f"at_{period}_cos"], np.cos(angles), atol=1e-6)
    # an event's time by the same rule; a missing one is no point of the circle
    np.testing.assert_allclose(values["seen_at_day_sin"], [1, 0], atol=1e-6)
    np.testing.assert_allclose(values["seen_at_day_cos"], [0, 0], atol=1e-6)


def test_hashed_ids_need_no_vocabulary(of_times_and_hashes):
    spec, transform, values = of_times_and_hashes
    seven, missing, eight, nine = values["iid"]
    assert missing == 0 and values["uid"] == [seven] and values["seen_iid"] == [nine, seven]
    assert len({seven, eight, nine}) == 3 and min(seven, eight, nine) > 0
    sizes = table_rows(spec, transform.vocabulary_size_by_name)  # has no file of that name to count
    assert sizes == {"ids": 1001}
    # the hash is part of the model: it is the same in every process and version
    assert seven == 1 + int(tf.strings.to_hash_bucket_fast("i7", 1000))


def test_a_batch_holds_the_parts_of_a_time(of_times_and_hashes):
    spec, _, values = of_times_and_hashes
    dense = [column.name for column in columns(spec) if column.kind == "dense" and column.group == "seen"]
    assert dense == [f"at_{period}_{part}" for period in ("hour", "day", "week") for part in ("sin", "cos")]
    assert {*values} >= {f"seen_{name}" for name in dense}
    assert transformed_dtypes(ModelInputs.from_spec(spec, lambda _: 5)).keys() >= {f"seen_{name}" for name in dense}


# === Batches of model inputs ===


def padded(lists, width, fill=0):
    return np.array([[*values, *[fill] * (width - len(values))] for values in lists])


def batch_of(transform, requests, keys=None):
    raw = tf.io.parse_example(encoded(requests), request_example.raw_feature_spec(SPEC))
    tensors = transform.transform_raw_features(raw)
    return to_batch(INPUTS, {key: tensors[key] for key in keys or tensors})


def test_batches_are_padded_and_masked(transform):
    lists = transformed(transform, TRAIN)
    batch = batch_of(transform, TRAIN)
    assert set(batch) == {"user", "context", "sequences", "candidates"}
    widest = max(values["candidate_count"][0] for values in lists)
    np.testing.assert_array_equal(batch["user"]["country"], [values["country"][0] for values in lists])
    np.testing.assert_array_equal(batch["context"]["hour"], [values["hour"][0] for values in lists])
    for name in ("item", "part_of", "price", "duration"):
        np.testing.assert_array_equal(batch["candidates"][name], padded([v[name] for v in lists], widest))
    counts = np.array([values["candidate_count"][0] for values in lists])
    np.testing.assert_array_equal(batch["candidates"]["mask"], np.arange(widest) < counts[:, None])
    for name, parts, length in (("seen", ("item", "price", "duration", "click"), 4), ("loved", ("part_of",), 2)):
        newest = [{part: values[f"{name}_{part}"][-length:] for part in parts} for values in lists]
        for part in parts:
            np.testing.assert_array_equal(batch["sequences"][name][part], padded([v[part] for v in newest], length))
        sizes = np.array([len(values[parts[0]]) for values in newest])
        assert sizes.min() == 0 and sizes.max() == length
        np.testing.assert_array_equal(batch["sequences"][name]["mask"], np.arange(length) < sizes[:, None])
    assert batch["candidates"]["mask"].dtype == batch["sequences"]["seen"]["mask"].dtype == tf.bool


def test_sets_become_a_third_axis(transform):
    requests = [
        request(3, tags=["t0", "t1", "t2"], tags_length=[1, 0, 2]),
        request(1, tags=["t3"] * 3, tags_length=[3]),
        request(2),
    ]
    ids = ids_of(transform, "tags")
    tags = batch_of(transform, requests)["candidates"]["tags"]
    expected = np.zeros((3, 3, 3))
    expected[0, 0, 0], expected[0, 2, :2], expected[1, 0] = ids["t0"], [ids["t1"], ids["t2"]], ids["t3"]
    np.testing.assert_array_equal(tags, expected)


def test_newest_events_are_kept_when_a_client_sends_more(transform):
    names = [*ids_of(transform, "things")][:6]
    (values,) = transformed(transform, [request(1, 6, seen_item=names)])
    seen = batch_of(transform, [request(1, 6, seen_item=names), request(1, 1)])["sequences"]["seen"]
    np.testing.assert_array_equal(seen["item"], [values["seen_item"][2:], [0] * 4])
    np.testing.assert_array_equal(seen["mask"], [[True] * 4, [True, False, False, False]])


def test_no_history_and_one_candidate(transform):
    batch = batch_of(transform, [request(1), request(1)])
    assert batch["candidates"]["item"].shape == batch["candidates"]["mask"].shape == (2, 1)
    assert batch["candidates"]["tags"].shape == (2, 1, 0)
    for sequence in batch["sequences"].values():
        assert {tuple(values.shape) for values in sequence.values()} == {(2, 0)}


def test_absent_groups_are_left_out(transform):
    context = batch_of(transform, TRAIN, (*USER, *SEEN, "loved_part_of"))
    assert set(context) == {"user", "sequences"}
    assert set(context["user"]) == set(USER)
    assert set(batch_of(transform, TRAIN, (*CONTEXT, *CANDIDATE))) == {"context", "candidates"}
    assert set(batch_of(transform, TRAIN, (*USER, *SEEN))) == {"user"}  # one of two sequences is no history


def test_targets_are_zero_where_nothing_is_observed(written):
    _, records = written
    tensors = parse_transformed(INPUTS, tf.constant(records))
    targets, batch = to_targets(INPUTS, tensors), to_batch(INPUTS, tensors)
    lists = [request_example.decode(record) for record in records]
    widest = max(values["candidate_count"][0] for values in lists)
    for place, task in enumerate(SPEC.task_names):
        np.testing.assert_array_equal(
            targets["labels"][:, :, place], padded([v[f"label_{task}"] for v in lists], widest)
        )
        np.testing.assert_array_equal(
            targets["weights"][:, :, place], padded([v[f"weight_{task}"] for v in lists], widest)
        )
    assert targets["labels"].shape == (20, widest, 2) and targets["labels"].dtype == tf.float32
    assert not np.any(targets["weights"].numpy()[~batch["candidates"]["mask"].numpy()])


@pytest.mark.parametrize("tasks", [("like",), ("like", "click")])
def test_targets_are_of_the_tasks_that_are_asked_for(written, tmp_path, tasks):
    _, records = written
    tensors = parse_transformed(INPUTS, tf.constant(records))
    everything, asked = to_targets(INPUTS, tensors), to_targets(INPUTS.for_tasks(tasks), tensors)
    places = [SPEC.task_names.index(task) for task in tasks]
    files = write_records(tmp_path / "all", [records])
    ((_, of_batches),) = request_batches(INPUTS.for_tasks(tasks), files, 20)
    for name in ("labels", "weights"):
        np.testing.assert_array_equal(asked[name], everything[name].numpy()[..., places])
        np.testing.assert_array_equal(of_batches[name], asked[name])


def test_parsing_transformed_records_equals_serving(written):
    transform, records = written
    order = [request_example.decode(record)["candidate_count"][0] for record in records]
    parsed = to_batch(INPUTS, parse_transformed(INPUTS, tf.constant(records)))
    served = batch_of(transform, TRAIN)
    assert parsed["candidates"]["item"].shape == served["candidates"]["item"].shape
    assert tf.reduce_sum(parsed["candidates"]["item"]) == tf.reduce_sum(served["candidates"]["item"])
    np.testing.assert_array_equal(tf.reduce_sum(tf.cast(parsed["candidates"]["mask"], tf.int32), -1), order)


# === Columns and tables ===


def test_columns_name_group_kind_and_table():
    found = [(c.group, c.name, c.kind, c.table, c.dim) for c in columns(SPEC)]
    assert found == [
        ("user", "country", "id", "country", 16),
        ("user", "age", "dense", None, 1),
        ("context", "hour", "dense", None, 1),
        ("candidate", "item", "id", "things", 8),
        ("candidate", "part_of", "id", "things", 8),
        ("candidate", "tags", "ids", "tags", 4),
        ("candidate", "price", "dense", None, 1),
        ("candidate", "duration", "id", "duration.bucket", 3),
        ("seen", "item", "id", "things", 8),
        ("seen", "price", "dense", None, 1),
        ("seen", "duration", "id", "duration.bucket", 3),
        ("seen", "click", "id", "feedback.click", 4),
        ("loved", "part_of", "id", "things", 8),
    ]


def test_tables_have_a_row_for_every_id(written):
    transform, records = written
    inputs = ModelInputs.from_spec(SPEC, transform.vocabulary_size_by_name)
    assert inputs.rows == {
        "country": 1 + 2 + 1,
        "things": 1 + len(ids_of(transform, "things")) + 3,
        "tags": 1 + len(ids_of(transform, "tags")) + 1,
        "duration.bucket": 1 + 4,
        "feedback.click": 3,
    }
    strangers = request(9, 9, country=[OOV], item=[f"{OOV}{i}" for i in range(9)], seen_click=[1.0] * 9)
    batch = batch_of(
        transform, [*TRAIN, {**strangers, "duration": [1e9] * 9, "tags": [OOV], "tags_length": [1] + [0] * 8}]
    )
    groups = {
        "candidate": batch["candidates"],
        **batch["sequences"],
        "user": batch["user"],
        "context": batch["context"],
    }
    for column in inputs.columns:
        if column.table:
            assert 0 <= tf.reduce_min(groups[column.group][column.name])
            assert tf.reduce_max(groups[column.group][column.name]) < inputs.rows[column.table]
    assert inputs.task_names == ("click", "like") and inputs.sequence_names == ("seen", "loved")
    assert ModelInputs.from_config(inputs.to_config()) == inputs


def test_a_vocabulary_too_large_to_train_is_refused():
    with pytest.raises(
        DataError, match=r"features `item`, `part_of`: .* at most 20,000,000 .*Received: 20,000,001.*top_k"
    ):
        table_rows(SPEC, lambda name: LARGEST_VOCABULARY + (name == "things"))
    assert table_rows(SPEC, lambda _: LARGEST_VOCABULARY)["things"] == LARGEST_VOCABULARY + 4


def test_vocabularies_never_share_a_table_with_feedback_or_buckets():
    spec = toy_spec(
        {
            "features.user.1.transform": "quantiles",
            "features.candidate.0.vocabulary": "age_bucket",
            "features.candidate.1.vocabulary": "feedback_click",
        }
    )
    rows = table_rows(spec, lambda name: 1000)
    assert (rows["age_bucket"], rows["feedback_click"]) == (1002, 1002)
    assert sorted(rows.values())[:3] == [3, 3, 11]


@pytest.mark.parametrize(
    ("settings", "expected"), [([None, None], 1), ([None, {"oov": 5}], 5), ([{"oov": 0}, None], 0)]
)
def test_oov_buckets_are_what_one_of_the_features_asks_for(settings, expected):
    changes = {
        f"features.candidate.{place}.vocabulary": {"name": "shared", **(asked or {})}
        for place, asked in enumerate(settings)
    }
    for spec in (toy_spec(changes), parse_spec(toy_spec(changes).to_json())):
        assert table_rows(spec, lambda name: 10)["shared"] == 11 + expected


# === Files of batches ===


def write_records(folder, parts):
    folder.mkdir()
    for place, records in enumerate(parts):
        with tf.io.TFRecordWriter(str(folder / f"part-{place}.gz"), "GZIP") as writer:
            for record in records:
                writer.write(record)
    return sorted(str(path) for path in folder.glob("*.gz"))


def flat(dataset):
    """The batches as comparable lists."""
    return [[tensor.numpy().tolist() for tensor in tf.nest.flatten(element)] for element in dataset]


def test_same_seed_gives_the_same_batches_however_records_are_written(written, tmp_path):
    _, records = written
    files = write_records(tmp_path / "one", [records[:5], records[5:]])
    others = write_records(tmp_path / "other", [records[:2:-1], records[:2], [records[2]], []])
    dataset = request_batches(INPUTS, files, 6, shuffle_requests=100, seed=4)
    epochs = [flat(dataset), flat(dataset)]
    assert [len(batch[0]) for batch in epochs[0]] == [6, 6, 6, 2]
    assert epochs[0] != epochs[1]
    again = request_batches(INPUTS, others, 6, shuffle_requests=100, seed=4)
    assert [flat(again), flat(again)] == epochs
    assert flat(request_batches(INPUTS, files, 6, shuffle_requests=100, seed=5)) != epochs[0]


def test_batches_hold_every_request_once(written, tmp_path):
    _, records = written
    files = write_records(tmp_path / "some", [records[:5], records[5:]])
    counts = sorted(request_example.decode(record)["candidate_count"][0] for record in records)
    for shuffle in (None, 7, 100):
        found = []
        for batch, targets in request_batches(INPUTS, files, 6, shuffle_requests=shuffle, seed=1):
            mask = batch["candidates"]["mask"]
            assert targets["labels"].shape == (*mask.shape, 2)
            found += tf.reduce_sum(tf.cast(mask, tf.int32), -1).numpy().tolist()
        assert sorted(found) == counts


def test_without_shuffling_the_order_of_the_files_is_kept(written, tmp_path):
    _, records = written
    files = write_records(tmp_path / "kept", [records[:5], records[5:]])
    tensors = parse_transformed(INPUTS, tf.constant(records))
    expected = [(to_batch(INPUTS, tensors), to_targets(INPUTS, tensors))]
    assert flat(request_batches(INPUTS, files[::-1], 20)) == flat(expected)


def test_requests_are_counted(written, tmp_path):
    _, records = written
    assert count_requests(write_records(tmp_path / "all", [records[:5], records[5:], []])) == 20
    assert count_requests([]) == 0


@pytest.mark.parametrize("tasks", [None, ("like",), ("like", "click")])
def test_labels_are_counted_where_they_are_observed(written, tmp_path, tasks):
    _, records = written
    files = write_records(tmp_path / "all", [records[:5], records[5:], []])
    counts = count_labels(INPUTS.for_tasks(tasks or SPEC.task_names), files)
    lists = [request_example.decode(record) for record in records]
    assert counts.requests == 20
    assert counts.candidates == sum(values["candidate_count"][0] for values in lists)
    for place, task in enumerate(tasks or SPEC.task_names):
        labels, masks = (np.concatenate([values[f"{part}_{task}"] for values in lists]) for part in ("label", "weight"))
        assert counts.observed[place] == masks.sum()
        assert counts.positives[place] == (labels * masks).sum() > 0
        assert counts.base_rates[place] == ((labels * masks).sum() + 1) / (masks.sum() + 2)
    assert counts.observed.shape == counts.positives.shape == (len(tasks or SPEC.task_names),)


def test_labels_of_more_requests_than_are_read_at_once(written, tmp_path):
    """Counted in batches of 1024 requests."""
    _, records = written
    once, often = (count_labels(INPUTS, write_records(tmp_path / str(times), [records * times])) for times in (1, 110))
    assert (often.requests, often.candidates) == (once.requests * 110, once.candidates * 110)
    np.testing.assert_array_equal(often.observed, once.observed * 110)
    np.testing.assert_array_equal(often.positives, once.positives * 110)


@pytest.mark.parametrize("files", [0, 1], ids=["no file", "an empty file"])
def test_without_requests_nothing_is_counted(tmp_path, files):
    counts = count_labels(INPUTS, write_records(tmp_path / "none", [[]] * files) if files else [])
    assert (counts.requests, counts.candidates) == (0, 0)
    np.testing.assert_array_equal([counts.observed, counts.positives], np.zeros((2, 2)))
    np.testing.assert_array_equal(counts.base_rates, [0.5, 0.5])


def test_base_rates_are_never_0_or_1():
    rates = LabelCounts(1, 8, np.array([8.0, 8.0, 0.0]), np.array([0.0, 8.0, 0.0])).base_rates
    np.testing.assert_allclose(rates, [0.1, 0.9, 0.5])
