"""The client against a served model: scores, contexts, long lists, swaps, faults, mistakes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from stand_in import StandIn

from serving import signatures
from serving.client import LruContextCache, Ranker, RankingUnavailable, RequestError, model_interface
from serving.export import export_model
from trainer.models.registry import build_model
from transform import examples

TOLERANCE = 1e-5
UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "busy")


def export(small, path, seed):
    import keras

    keras.utils.set_random_seed(seed)
    model = build_model(small.spec.model, small.inputs())
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(variable + random.normal(0, 0.3, variable.shape))
    export_model(small.spec, model, small.transform_output.transform_features_layer(), str(path))
    return str(path)


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return {version: export(small, folder / str(version), seed=version) for version in (1, 2)}


@pytest.fixture(scope="module")
def models(exported):
    return {version: tf.saved_model.load(path) for version, path in exported.items()}


@pytest.fixture
def server(exported):
    server = StandIn({1: exported[1]}).start()
    yield server
    server.stop()


@pytest.fixture(params=["grpc", "http"])
def address(request, server):
    return server.address(request.param)


@pytest.fixture
def ranker(address):
    with Ranker(address, "small", deadline=60) as ranker:
        yield ranker


@pytest.fixture(scope="module")
def serialized(small):
    """A request with a history, another without, one with many candidates."""
    requests = [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP")]
    requests.sort(key=lambda request: len(examples.decode(request)["seen_item"]))
    return [requests[0], requests[-1], max(requests, key=lambda r: examples.decode(r)["candidate_count"])]


def as_request(spec, serialized, copies=1):
    """A request example as the arguments of `rank`; its candidates again and again, with other numbers."""
    values = examples.decode(serialized)

    def given(value):
        return None if value in ("", -1) or value != value else value

    def candidate(n, copy):
        row = {}
        for group, feature in spec.feature_groups():
            if group == "candidate" and feature.type == "categorical_set":
                lengths = values[examples.length_key(feature.name)]
                row[feature.name] = values[feature.name][sum(lengths[:n]) : sum(lengths[: n + 1])]
            elif group == "candidate":
                row[feature.name] = given(values[feature.name][n])
        return {**row, "signal": row["signal"] + copy / 10}

    count = values[examples.CANDIDATE_COUNT][0]
    single = {group: {} for group in ("user", "context")}
    for group, feature in spec.feature_groups():
        if group != "candidate":
            single[group][feature.name] = given(values[feature.name][0])
    sequences = {}
    for sequence in spec.sequences:
        parts = (*sequence.features, *sequence.feedback)
        columns = {part: map(given, values[examples.sequence_key(sequence.name, part)]) for part in parts}
        sequences[sequence.name] = [
            dict(zip(parts, event, strict=True)) for event in zip(*columns.values(), strict=True)
        ]
    return {
        **single,
        "sequences": sequences,
        "candidates": [candidate(n, c) for c in range(copies) for n in range(count)],
    }


def assert_scores(ranking, expected):
    for name, values in {**ranking.tasks, "score": ranking.score}.items():
        np.testing.assert_allclose(values, expected[name][0], atol=TOLERANCE, err_msg=name)
    assert ranking.score.size == 1 or np.ptp(expected["score"]) > 10 * TOLERANCE, (
        "scores that differ, or equality says nothing"
    )
    assert (np.diff(ranking.score[ranking.order]) <= 0).all()


def served_scores(models, serialized, version=1):
    return models[version].signatures["serving_default"](examples=tf.constant([serialized]))


# === Scores ===


def test_names_are_the_exporters():
    for name in vars(model_interface):
        if name.isupper() and hasattr(signatures, name):
            assert getattr(model_interface, name) == getattr(signatures, name)
    assert model_interface.CANDIDATE_COUNT == examples.CANDIDATE_COUNT
    assert examples.length_key("x") == "x" + model_interface.LENGTH_SUFFIX


def test_scores_are_the_signatures_with_and_without_a_cache(small, models, server, ranker, serialized):
    for n, example in enumerate(serialized):
        request, expected = as_request(small.spec, example), served_scores(models, example)
        plain = ranker.rank(**request)
        who = {"user_key": f"u{n}", "history_version": 1}
        first, again = ranker.rank(**request, **who), ranker.rank(**request, **who)
        for ranking in (plain, first, again):
            assert_scores(ranking, expected)
            assert set(ranking.tasks) == set(small.spec.task_names) and ranking.version == 1
        assert [r.context_cached for r in (plain, first, again)] == [False, False, True]
    once = ["rank", "encode_context", "rank_with_context", "rank_with_context"]
    assert server.calls == ["metadata", *once * 3]


def test_columns_are_rows(small, models, ranker, serialized):
    request = as_request(small.spec, serialized[2])

    def columns(rows):
        return {name: [row[name] for row in rows] for name in rows[0]}

    candidates = columns(request["candidates"])
    candidates["signal"] = np.array(candidates["signal"], np.float32)
    sequences = {name: columns(events) if events else events for name, events in request["sequences"].items()}
    ranking = ranker.rank(**{**request, "candidates": candidates, "sequences": sequences})
    assert_scores(ranking, served_scores(models, serialized[2]))
