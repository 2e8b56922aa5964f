"""The request example: encoding, parsing specs and the schema that a broken log violates."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.testing.toy_requests import comparable, impression, plain_requests, serialized, toy_spec, write_files
from transform.features import request_example

NUMBERS = [0.0, 1.5, -2.25, math.nan]


@pytest.fixture
def requests(tmp_path):
    """Requests with and without history, with sets of all sizes and missing values."""
    log = [
        impression("a", 1, clicked="1", liked="1", bid=""),
        impression("zz", 2, clicked=""),
        impression("c", 3, day=2),
        impression("d", 4, day=2, user="u9"),
        impression("e", 5, day=3, shared="1"),
    ]
    return [values for _, values in plain_requests(toy_spec(), write_files(tmp_path, log))[0]]


def test_what_is_encoded_decodes(requests):
    for values in requests:
        assert comparable(request_example.decode(serialized(values))) == values


def test_encoding_keeps_types_and_empty_lists():
    values = {"text": ["", "ü|,\n", "b"], "count": [0, -1, 2**40], "number": NUMBERS, "none": []}
    example = request_example.encode(values)
    kinds = {key: feature.WhichOneof("kind") for key, feature in example.features.feature.items()}
    assert kinds == {"text": "bytes_list", "count": "int64_list", "number": "float_list", "none": None}
    assert comparable(request_example.decode(example.SerializeToString())) == comparable(values)


def test_parsing_spec_reads_every_key(requests):
    spec = toy_spec()
    fields = request_example.raw_feature_spec(spec)
    identifiers = {request_example.REQUEST_ID, request_example.REQUEST_TIME}
    assert set(fields) == set().union(*requests) - identifiers
    parsed = tf.io.parse_example([serialized(values) for values in requests], fields)
    for key, tensor in parsed.items():
        rows = tf.RaggedTensor.from_sparse(tensor).to_list()
        for row, values in zip(rows, requests, strict=True):
            row = [value.decode() if isinstance(value, bytes) else value for value in row]
            assert comparable({key: row})[key] == values[key], key
    without = request_example.raw_feature_spec(spec, targets=False)
    assert set(fields) - set(without) == {f"{part}_{task}" for part in ("label", "weight") for task in spec.task_names}


def test_keys_have_one_dtype_each():
    spec = toy_spec()
    dtypes = request_example.input_dtypes(spec)
    assert dtypes["seen_item"] == dtypes["item"] == tf.string
    assert dtypes["seen_price"] == dtypes["price"] == dtypes["seen_click"] == tf.float32
    assert dtypes["tags"] == tf.string and dtypes["tags_length"] == tf.int64
    assert not set(dtypes) & set(request_example.target_dtypes(spec))


def test_candidate_lists_have_the_candidates_length(requests):
    spec = toy_spec()
    for values in requests:
        (count,) = values[request_example.CANDIDATE_COUNT]
        keys = {feature.name for feature in spec.features.candidate if feature.type != "categorical_set"}
        keys |= {"tags_length", *request_example.target_dtypes(spec)}
        assert {len(values[key]) for key in keys} == {count}
        assert len(values["tags"]) == sum(values["tags_length"])
        for sequence in spec.sequences:
            parts = (*sequence.features, *sequence.feedback)
            assert len({len(values[request_example.sequence_key(sequence.name, part)]) for part in parts}) == 1


def test_schema_lists_every_key_of_an_example(requests):
    schema = request_example.raw_schema(toy_spec())
    assert {feature.name for feature in schema.feature} == set().union(*requests)


@pytest.mark.parametrize(
    ("broken", "key"),
    [
        ({}, None),
        ({"label_like": [2.0]}, "label_like"),
        ({"weight_click": [-1.0]}, "weight_click"),
        ({"candidate_count": [0]}, "candidate_count"),
        ({"age": [30.0, 31.0]}, "age"),
        ({"request_id": []}, "request_id"),
        ({"item": []}, "item"),
        ({"stranger": [1.0]}, "stranger"),
    ],
)
def test_schema_accepts_real_examples_and_flags_broken_ones(requests, broken, key):
    tfdv = pytest.importorskip("tensorflow_data_validation")
    statistics_of = pytest.importorskip("tensorflow_data_validation.statistics.stats_impl")
    coders = pytest.importorskip("tfx_bsl.coders.example_coder")
    found = [serialized(values) for values in [*requests, {**requests[-1], **broken}]]
    batch = coders.ExamplesToRecordBatchDecoder().DecodeBatch(found)
    schema = request_example.raw_schema(toy_spec())
    statistics = statistics_of.generate_statistics_in_memory(batch, tfdv.StatsOptions(schema=schema))
    anomalies = tfdv.validate_statistics(statistics, schema).anomaly_info
    assert set(anomalies) == ({key} if key else set())


def test_float_precision_is_that_of_a_float32():
    assert request_example.decode(request_example.encode({"x": [0.1]}).SerializeToString())["x"] == [
        float(np.float32(0.1))
    ]
