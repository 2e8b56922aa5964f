"""The client against a served model: scores, user states, long lists, swaps, faults."""

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from serving.client import (
    LruUserStateCache,
    Ranker,
    RankingUnavailable,
    RequestError,
    UserStateKey,
    model_interface,
    rest_transport,
)
from serving.client.__main__ import main
from serving.client.redis_user_state_cache import RedisUserStateCache
from serving.export import signatures
from serving.export.model_files import WARMUP_FILE
from serving.server.model_server import ModelServer
from serving.server.options import ServerOptions
from tests.testing.fault_proxy import FaultProxy, QuietServer
from tests.testing.tiers import costly
from tests.testing.tiny_model import until
from transform.features import request_example

TOLERANCE = 1e-5
MODEL = "small"
CALM = {"deadline": 60, "refresh": 3600}  # whatever else this machine does
WHO = {"user_key": "u1", "history_version": 7}
TWO_STEPS = ["encode_user", "rank_with_user_state"]


@pytest.fixture(scope="module")
def folder(served, tmp_path_factory):
    """A model's folder with two versions: 2 has other weights."""
    folder = tmp_path_factory.mktemp("versions")
    # Without warm-up requests, which take longer than all else here.
    shutil.copytree(served.path, folder / "1", ignore=shutil.ignore_patterns(WARMUP_FILE))
    shutil.copytree(folder / "1", folder / "2")
    random, prefix = np.random.default_rng(2), str(folder / "2/variables/variables")
    saved = tf.train.load_checkpoint(prefix)
    values = {name: saved.get_tensor(name) for name in saved.get_variable_to_shape_map()}
    for name, value in values.items():
        if getattr(value, "dtype", None) == np.float32:
            values[name] = value + random.normal(0, 0.1, value.shape).astype(np.float32)
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(values), shape_and_slices=[""] * len(values), tensors=list(values.values())
    )
    return folder


@pytest.fixture(scope="module")
@costly("server")
def real_server(folder, tmp_path_factory):
    files = tmp_path_factory.mktemp("config")
    config, batching = files / "models.config", files / "batching_parameters.txt"
    config.write_text(
        f'model_config_list {{ config {{ name: "{MODEL}" base_path: "{folder}" model_platform: "tensorflow" '
        'model_version_policy { all {} } version_labels { key: "stable" value: 1 } } }'
    )
    batching.write_text("pad_variable_length_inputs: true")
    options = ServerOptions(
        model_config_file=str(config),
        enable_batching=True,  # answers are as long as the longest that is joined
        batching_parameters_file=str(batching),
        port=0,
        rest_api_port=0,
        num_threads=2,
    )
    with ModelServer(options) as server:
        yield server


@pytest.fixture(scope="module")
def models(real_server):
    """The loaded versions, to be called without a client."""
    return {version.number: version for version in real_server.models[0].available}


@pytest.fixture
def server(real_server):
    """The real one behind a proxy for faults; clients see version 1."""
    proxy = FaultProxy(real_server, served={1}).start()
    yield proxy
    proxy.stop()


@pytest.fixture(params=["grpc", "http"])
def address(request, server):
    return server.address(request.param)


@pytest.fixture
def ranker(address):
    with Ranker(address, MODEL, **CALM) as ranker:
        yield ranker


@pytest.fixture(scope="module")
def serialized(small):
    """A request with a long history, another without any, one of many candidates."""
    requests = [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP")]

    def size(key):
        return lambda request: len(request_example.decode(request)[key])

    return [max(requests, key=size("seen_item")), min(requests, key=size("seen_item")), max(requests, key=size("item"))]


@pytest.fixture(scope="module")
def request_of_many(small, serialized):
    return as_request(small.spec, serialized[2])


def as_request(spec, serialized, copies=1):
    """A request example as the arguments of `rank`, its candidates so often, each time with other numbers."""
    values = request_example.decode(serialized)

    def given(value):
        return None if value in ("", -1) or value != value else value

    def candidate(n, copy):
        row = {}
        for feature in spec.candidate_features():
            if feature.type == "categorical_set":
                lengths = values[request_example.length_key(feature.name)]
                row[feature.name] = values[feature.name][sum(lengths[:n]) : sum(lengths[: n + 1])]
            else:
                row[feature.name] = given(values[feature.name][n])
        return {**row, "signal": row["signal"] + copy / 10}

    count = values[request_example.CANDIDATE_COUNT][0]
    single = {group: {} for group in ("user", "context")}
    for group, feature in spec.feature_groups():
        if group != "candidate":
            single[group][feature.name] = given(values[feature.name][0])
    sequences = {}
    for sequence in spec.sequences:
        parts = (*sequence.features, *sequence.feedback)
        columns = [map(given, values[request_example.sequence_key(sequence.name, part)]) for part in parts]
        sequences[sequence.name] = [dict(zip(parts, event, strict=True)) for event in zip(*columns, strict=True)]
    candidates = [candidate(n, copy) for copy in range(copies) for n in range(count)]
    return {**single, "sequences": sequences, "candidates": candidates}


def expected_scores(models, serialized, version=1):
    signature = models[version].signature(signatures.SERVING_DEFAULT)
    outputs = models[version].run(signature, {"examples": np.array([serialized], object)})
    return {name: values[0] for name, values in outputs.items()}


def assert_scores(ranking, expected):
    for name, values in {**ranking.tasks, "score": ranking.score}.items():
        np.testing.assert_allclose(values, expected[name], atol=TOLERANCE, err_msg=name)
    assert (np.diff(ranking.score[ranking.order]) <= 0).all()
    assert sorted(ranking.order) == list(range(len(ranking.score)))


# === Scores ===


def test_names_are_the_exporters():
    names = [name for name in vars(model_interface) if name.isupper() and hasattr(signatures, name)]
    assert len(names) == 9
    for name in names:
        assert getattr(model_interface, name) == getattr(signatures, name)
    assert model_interface.CANDIDATE_COUNT == request_example.CANDIDATE_COUNT
    assert request_example.length_key("x") == "x" + model_interface.LENGTH_SUFFIX


def test_scores_are_the_signatures_with_and_without_a_kept_user_state(small, models, server, ranker, serialized):
    for n, example in enumerate(serialized):
        request, expected = as_request(small.spec, example), expected_scores(models, example)
        plain, first, again = (
            ranker.rank(**request, **who) for who in ({}, *[{"user_key": f"u{n}", "history_version": 7}] * 2)
        )
        for ranking in (plain, first, again):
            assert_scores(ranking, expected)
            assert set(ranking.tasks) == set(small.spec.task_names) and ranking.version == 1
        assert [ranking.user_state_cached for ranking in (plain, first, again)] == [False, False, True]
    assert np.ptp(expected["score"]) > 100 * TOLERANCE, "scores that differ, or equality says nothing"
    assert server.calls == ["metadata", *["rank", *TWO_STEPS, "rank_with_user_state"] * 3]


def test_columns_are_rows(models, ranker, serialized, request_of_many):
    def columns(rows):
        return {name: [row[name] for row in rows] for name in rows[0]}

    candidates = columns(request_of_many["candidates"])
    candidates["signal"] = np.array(candidates["signal"], np.float32)
    sequences = {name: columns(events) if events else [] for name, events in request_of_many["sequences"].items()}
    ranking = ranker.rank(**{**request_of_many, "candidates": candidates, "sequences": sequences})
    assert_scores(ranking, expected_scores(models, serialized[2]))


def test_a_long_list_is_ranked_in_parts_as_it_would_be_at_once(small, server, address, ranker, serialized):
    request = as_request(small.spec, serialized[2], copies=6)
    assert len(request["candidates"]) == 36
    whole = ranker.rank(**request)
    with Ranker(address, MODEL, **CALM, max_candidates=10) as in_parts:
        for ranking in (in_parts.rank(**request, **WHO), in_parts.rank(**request, **WHO), in_parts.rank(**request)):
            assert_scores(ranking, {**whole.tasks, "score": whole.score})
            np.testing.assert_array_equal(ranking.order, whole.order)
    assert server.calls.count("summarize_candidates") == server.calls.count("score_summary") == 3 * 4
    assert server.calls.count("encode_user") == 2


def test_no_candidates_is_no_call(server, ranker, request_of_many):
    ranking = ranker.rank(**{**request_of_many, "candidates": []})
    assert ranking.score.shape == ranking.order.shape == (0,) and len(ranking.tasks) == 3
    assert server.calls == ["metadata"]


def test_a_user_is_encoded_again_for_another_history_or_user(server, ranker, request_of_many):
    for who in (("u1", 7), ("u1", 8), ("u2", 8), ("u1", 8)):
        ranking = ranker.rank(**request_of_many, user_key=who[0], history_version=who[1])
    assert ranking.user_state_cached
    assert server.calls.count("encode_user") == 3


@pytest.mark.parametrize("change", ["name", "dtype", "rank"])
def test_a_kept_user_state_of_another_form_is_not_used(ranker, request_of_many, change, caplog):
    key = UserStateKey(MODEL, 1, *map(str, WHO.values()))
    ranking = ranker.rank(**request_of_many, **WHO)
    state = dict(ranker.cache.get(key))
    name = next(name for name, array in state.items() if array.dtype == np.float32)
    array = state.pop(name)
    if change != "name":
        state[name] = array.astype(np.float16) if change == "dtype" else array[0]
    ranker.cache.put(key, state)
    first, second = (ranker.rank(**request_of_many, **WHO) for _ in range(2))
    assert [first.user_state_cached, second.user_state_cached] == [False, True]
    np.testing.assert_allclose(first.score, ranking.score, atol=TOLERANCE)
    assert len(caplog.messages) == 1 and "encoded again" in caplog.messages[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "bool", "int32", "int64"])
def test_dtypes_are_named_as_tensorflow_does(dtype):
    dtype = tf.as_dtype(dtype)
    array = np.zeros(1, dtype.as_numpy_dtype)
    assert model_interface._dtype(array) == types_pb2.DataType.Name(dtype.as_datatype_enum)


def test_threads_share_a_ranker(small, models, address, ranker, serialized):
    """Lists of many sizes, which the server joins, whole and in parts."""
    requests = [as_request(small.spec, example, copies) for example, copies in zip(serialized, (1, 3, 6), strict=True)]
    del requests[2]["candidates"][33:]  # a part of 9 and three of 8, which come back as long as that
    expected = [ranker.rank(**request) for request in requests]
    with Ranker(address, MODEL, **CALM, max_candidates=10) as in_parts, ThreadPoolExecutor(8) as pool:

        def work(n):
            who = {"user_key": str(n % 3), "history_version": n // 30} if n % 2 else {}
            whole = expected[n % 3]
            assert_scores(
                (in_parts, ranker)[n % 4 // 2].rank(**requests[n % 3], **who), {**whole.tasks, "score": whole.score}
            )

        list(pool.map(work, range(72)))


# === Versions ===


def test_a_swap_within_a_request_starts_it_again(models, server, ranker, serialized, request_of_many):
    """The version that encoded the context goes before the candidates are scored."""

    def swap():
        server.served = {2}

    assert ranker.rank(**request_of_many).version == 1
    server.calls.clear()
    server.faults = [None, swap]
    ranking = ranker.rank(**request_of_many, **WHO)
    assert server.calls == [*TWO_STEPS, "metadata", *TWO_STEPS]
    assert ranking.version == 2 and not ranking.user_state_cached
    assert_scores(ranking, expected_scores(models, serialized[2], version=2))
    other = expected_scores(models, serialized[2], version=1)
    assert np.abs(ranking.score - other["score"]).max() > 100 * TOLERANCE


def test_a_swap_between_parts_starts_the_request_again(small, models, server, address, ranker, serialized):
    request = as_request(small.spec, serialized[2], copies=6)

    def swap():
        server.served = {2}

    with Ranker(address, MODEL, **CALM, max_candidates=10) as in_parts:
        in_parts.rank(**request, **WHO)
        server.faults = [None, None, None, None, swap]
        ranking = in_parts.rank(**request, **WHO)
    whole = ranker.rank(**request)
    assert ranking.version == whole.version == 2
    assert_scores(ranking, {**whole.tasks, "score": whole.score})


def test_a_new_version_beside_the_old_one_is_found_in_time(models, server, address, serialized, request_of_many):
    with Ranker(address, MODEL, deadline=60, refresh=0) as eager, Ranker(address, MODEL, **CALM) as patient:
        versions = []
        for served in ({1}, {1, 2}, {2}):
            server.served = served
            versions.append([ranker.rank(**request_of_many, **WHO).version for ranker in (eager, patient)])
    assert versions == [[1, 1], [2, 1], [2, 2]]


def test_a_kept_user_state_is_never_used_for_another_version(models, server, address, serialized, request_of_many):
    """The two versions have user states of one form: nothing but the key keeps them apart."""
    server.served = {1, 2}
    cache = LruUserStateCache()
    expected = {version: expected_scores(models, serialized[2], version) for version in (1, 2)}
    assert np.abs(expected[1]["score"] - expected[2]["score"]).max() > 100 * TOLERANCE
    with (
        Ranker(address, MODEL, **CALM, version=1, cache=cache) as first,
        Ranker(address, MODEL, **CALM, version=2, cache=cache) as second,
    ):
        rankings = [ranker.rank(**request_of_many, **WHO) for ranker in (first, second, first, second)]
    for ranking, version in zip(rankings, (1, 2, 1, 2), strict=True):
        assert ranking.version == version
        assert_scores(ranking, expected[version])
    assert [ranking.user_state_cached for ranking in rankings] == [False, False, True, True]
    states = [cache.get(UserStateKey(MODEL, version, *map(str, WHO.values()))) for version in (1, 2)]
    assert states[0].keys() == states[1].keys() and len(cache) == 2


def test_a_new_version_does_not_use_the_user_states_of_the_one_before(
    models, server, address, serialized, request_of_many
):
    with Ranker(address, MODEL, deadline=60, refresh=0) as ranker:
        for served, cached in (({1}, False), ({1}, True), ({1, 2}, False), ({1, 2}, True), ({1}, True)):
            server.served = served
            ranking = ranker.rank(**request_of_many, **WHO)
            assert (ranking.version, ranking.user_state_cached) == (max(served), cached)
            assert_scores(ranking, expected_scores(models, serialized[2], max(served)))


def test_requests_go_on_while_the_server_is_asked_for_its_version(server, address, request_of_many):
    asked, answer = threading.Event(), threading.Event()

    def hang():
        asked.set()
        answer.wait(60)

    with Ranker(address, MODEL, deadline=60, refresh=0) as ranker, ThreadPoolExecutor(1) as pool:
        ranker.rank(**request_of_many)
        server.faults = [hang]
        waiting = pool.submit(ranker.rank, **request_of_many)
        try:
            assert asked.wait(60)
            assert ranker.rank(**request_of_many).version == 1
            assert not waiting.done()
        finally:
            answer.set()
        assert waiting.result(60).version == 1


def test_servers_that_load_a_version_one_after_the_other(models, real_server, server, request_of_many, monkeypatch):
    """Calls go to the two in turn, so that one names a version that the other, which is asked next, doesn't have."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    slow = FaultProxy(real_server, served={1}).start()
    both = ",".join(proxy.address("grpc").removeprefix("grpc://") for proxy in (server, slow))
    try:
        with Ranker(f"grpc://ipv4:{both}", MODEL, deadline=60, refresh=0) as ranker:
            until(lambda: ranker.rank(**request_of_many) and server.calls and slow.calls)
            server.served = {1, 2}
            for _ in range(4):
                for who in ({}, WHO, {}):  # of two and of three calls: each server is the first in turn
                    assert ranker.rank(**request_of_many, **who).version == 1
            slow.served = {1, 2}
            assert ranker.rank(**request_of_many).version == 2
    finally:
        slow.stop()


def test_the_version_before_is_used_until_the_next_refresh(server, ranker, request_of_many, caplog):
    ranker.rank(**request_of_many)
    server.served = {2}
    assert ranker.rank(**request_of_many).version == 2
    server.served = {1, 2}
    server.faults = [(grpc.StatusCode.NOT_FOUND, "gone")]
    server.calls.clear()
    assert [ranker.rank(**request_of_many).version for _ in range(2)] == [1, 1]
    assert server.calls == ["rank", "metadata", "rank", "rank"]
    assert caplog.messages == [
        "Model `small`: version 2 is named, but not all servers have it: version 1 until they are asked again."
    ]


def test_asking_for_a_newer_version_may_fail(server, address, request_of_many, caplog):
    wake = threading.Event()
    with Ranker(address, MODEL, deadline=8, refresh=0) as ranker:
        try:
            ranker.rank(**request_of_many)
            for fault in (wake.wait, (grpc.StatusCode.INTERNAL, "broken"), None, (grpc.StatusCode.INTERNAL, "again")):
                server.faults = [fault]
                assert ranker.rank(**request_of_many).version == 1
        finally:
            wake.set()
    first, second = caplog.messages  # one until it succeeds
    assert "version 1 goes on" in first and "broken" not in first and "again" in second


def test_a_pinned_version_is_the_only_one(models, server, address, serialized, request_of_many):
    server.served = {1, 2}
    with Ranker(address, MODEL, version=1, **CALM) as ranker:
        assert_scores(ranker.rank(**request_of_many), expected_scores(models, serialized[2], version=1))
        server.served = {2}
        with pytest.raises(RankingUnavailable, match="Servable not found"):
            ranker.rank(**request_of_many)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_label_is_followed(models, real_server, scheme, serialized, request_of_many):
    port = real_server.grpc_port if scheme == "grpc" else real_server.rest_port
    for arguments, version in (({"label": "stable"}, 1), ({}, 2)):
        with Ranker(f"{scheme}://127.0.0.1:{port}", MODEL, **CALM, **arguments) as ranker:
            ranking = ranker.rank(**request_of_many)
        assert ranking.version == version
        assert_scores(ranking, expected_scores(models, serialized[2], version))
    with Ranker(f"{scheme}://127.0.0.1:{port}", MODEL, **CALM, label="none") as ranker:
        with pytest.raises(RequestError, match="none"):
            ranker.rank(**request_of_many)


def test_a_version_that_goes_again_and_again_is_told(server, ranker, request_of_many):
    ranker.rank(**request_of_many)
    gone = (grpc.StatusCode.NOT_FOUND, "gone")
    server.faults = [gone, *[None, gone] * 2]
    with pytest.raises(RankingUnavailable, match="3 times one that is gone"):
        ranker.rank(**request_of_many)


# === Faults ===


def test_a_server_that_refuses_twice_is_asked_again(models, server, ranker, serialized, request_of_many):
    busy = [(grpc.StatusCode.UNAVAILABLE, "busy"), (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full")]
    server.faults = [*busy, None, *busy]
    assert_scores(ranker.rank(**request_of_many), expected_scores(models, serialized[2]))
    assert server.calls == ["metadata"] * 3 + ["rank"] * 3


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_other_refusals_are_final(server, ranker, request_of_many, code):
    ranker.rank(**request_of_many)
    server.calls.clear()
    server.faults = [(grpc.StatusCode[code], "this is why")]
    expected = RequestError if code == "INVALID_ARGUMENT" else RankingUnavailable
    with pytest.raises(expected, match="this is why"):
        ranker.rank(**request_of_many)
    assert server.calls == ["rank"]


def test_nothing_is_tried_after_the_deadline(server, address, request_of_many):
    server.faults = [(grpc.StatusCode.UNAVAILABLE, "busy")] * 1000
    with Ranker(address, MODEL, deadline=0.5) as ranker:
        started = time.monotonic()
        with pytest.raises(RankingUnavailable, match="busy"):
            ranker.rank(**request_of_many)
        calls = len(server.calls)
        assert 2 < calls < 100 and time.monotonic() - started < 30
        time.sleep(0.5)
        assert len(server.calls) == calls


def test_a_server_that_hangs_is_given_up_at_the_deadline(server, address, request_of_many):
    wake = threading.Event()
    server.faults = [wake.wait]
    with Ranker(address, MODEL, deadline=0.3) as ranker:
        try:
            with pytest.raises(RankingUnavailable, match=r"DEADLINE_EXCEEDED|within the deadline"):
                ranker.rank(**request_of_many)
        finally:
            wake.set()
    assert server.calls == ["metadata"]


def test_an_answer_that_trickles_is_given_up_at_the_deadline():
    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b" ")
                time.sleep(0.1)

        def log_message(self, *_):
            pass

    slow = QuietServer(("127.0.0.1", 0), Trickle)
    threading.Thread(target=slow.serve_forever, args=(0.02,), daemon=True).start()
    transport = rest_transport.RestTransport(f"http://127.0.0.1:{slow.server_address[1]}")
    try:
        started = time.monotonic()
        with pytest.raises(RankingUnavailable, match="within the deadline"):
            transport.metadata(MODEL, None, None, timeout=0.5)
        assert time.monotonic() - started < 5
    finally:
        transport.close()
        slow.shutdown()
        slow.server_close()


def test_a_server_that_was_away_is_found_again(models, server, ranker, serialized, request_of_many):
    """Requests that came meanwhile wait, others find it at once."""
    ranker.rank(**request_of_many)
    server.stop()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ranker.rank, **request_of_many) for _ in range(2)]
        time.sleep(1)
        server.start()
        for ranking in waiting:
            assert_scores(ranking.result(60), expected_scores(models, serialized[2]))
    assert_scores(ranker.rank(**request_of_many), expected_scores(models, serialized[2]))


def test_a_redis_that_is_away_costs_an_encoding(server, address, request_of_many, caplog):
    cache = RedisUserStateCache("redis://127.0.0.1:9/0")
    with Ranker(address, MODEL, **CALM, cache=cache) as ranker:
        for _ in range(2):
            assert not ranker.rank(**request_of_many, **WHO).user_state_cached
    assert server.calls == ["metadata", *TWO_STEPS * 2]
    assert [record.message for record in caplog.records if "Redis" in record.message] == caplog.messages[:1]


def test_a_context_that_rest_can_not_carry_is_not_kept(server, request_of_many, monkeypatch, caplog):
    """As those of float16 are."""
    monkeypatch.delitem(rest_transport._DTYPES, "DT_INT32")
    with Ranker(server.address("http"), MODEL, **CALM, max_candidates=len(request_of_many["candidates"])) as ranker:
        for _ in range(2):
            assert not ranker.rank(**request_of_many, **WHO).user_state_cached
        assert server.calls == ["metadata", "rank", "rank"]
        assert [record.message for record in caplog.records] == [
            "REST carries no DT_INT32: user states of model `small` are not kept. Use gRPC."
        ]
        ranker.max_candidates -= 1
        with pytest.raises(RequestError, match="Use gRPC"):
            ranker.rank(**request_of_many)


@pytest.mark.parametrize("token", ["secret", None])
def test_a_token_goes_with_each_call(server, address, request_of_many, token):
    with Ranker(address, MODEL, **CALM, token=token) as ranker:
        ranker.rank(**request_of_many)
    assert server.tokens == [token and f"Bearer {token}"] * 2


def test_this_machine_is_asked_past_the_proxies_of_the_environment(address, request_of_many, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    with Ranker(address, MODEL, **CALM) as ranker:
        ranker.rank(**request_of_many)


# === Mistakes ===


def test_a_ranker_that_was_closed_says_so(server, request_of_many):
    ranker = Ranker(server.address("grpc"), MODEL)
    ranker.close()
    with pytest.raises(RequestError, match="one after `close`"):
        ranker.rank(**request_of_many)


def test_a_mistake_is_told_before_anything_is_sent(server, ranker, request_of_many):
    request = {**request_of_many, "candidates": [{**request_of_many["candidates"][0], "price": "12"}]}
    with pytest.raises(RequestError, match=r"candidates\[0\].price: a number or None is expected. Received: '12'"):
        ranker.rank(**request)
    with pytest.raises(RequestError, match="user_key"):
        ranker.rank(**request_of_many, user_key="u1")
    assert server.calls == ["metadata"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"address": "localhost:8500"}, "address: grpc://host:port"),
        ({"address": "grpc://localhost"}, "address: grpc://host:port"),
        ({"address": "http://host:85x"}, "address: grpc://host:port"),
        ({"address": "http://[::1:8501"}, "address: grpc://host:port"),
        ({"address": "grpc://[::1:8500"}, "address: grpc://host:port"),
        ({"token": "a\nb"}, "token: printable ASCII"),
        ({"token": "\u00fc"}, "token: printable ASCII"),
        ({"address": "https://host", "ca": "/no/such/file"}, "ca: a readable file of certificates"),
        ({"address": "grpcs://host:1", "ca": "/no/such/file"}, "ca: a readable file of certificates"),
        ({"address": "http://host", "ca": "/no/such/file"}, "Write https://"),
        ({"version": 1, "label": "canary"}, "Received: both"),
        ({"deadline": 0}, "deadline: a number above 0"),
        ({"max_candidates": 0}, "max_candidates: a number above 0"),
    ],
)
def test_arguments_are_checked(arguments, text):
    with pytest.raises(RequestError, match=text):
        Ranker(**{"address": "http://localhost:8501", "model": MODEL, **arguments})


# === The program ===


def run_main(request, address, tmp_path, *more):
    path = tmp_path / "request.json"
    path.write_text(request if isinstance(request, str) else json.dumps(request))
    return main(["--address", address, "--model", MODEL, "--request", str(path), "--deadline", "60", *more])


def test_the_program_prints_a_table_or_json(models, address, serialized, request_of_many, tmp_path, capsys):
    expected = expected_scores(models, serialized[2])
    best = int(expected["score"].argmax())
    assert run_main(request_of_many, address, tmp_path) == 0
    table = capsys.readouterr().out
    assert f"{expected['score'][best]:.6f}" in table and "version 1" in table
    assert run_main(request_of_many, address, tmp_path, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["version"] == 1 and answer["candidates"][0]["candidate"] == best
    for candidate in answer["candidates"]:
        assert abs(candidate["buy"] - expected["buy"][candidate["candidate"]]) < TOLERANCE


@pytest.mark.parametrize(
    ("request_text", "text"),
    [
        ("{", "JSON in UTF-8 is expected"),
        ("[]", "Received: list"),
        ('{"users": {}}', "Received: users"),
        ('{"user": {"age": 3}}', "context.device: a value is expected"),
    ],
)
def test_the_program_tells_mistakes_in_a_line(address, request_text, text, tmp_path, capsys):
    assert run_main(request_text, address, tmp_path) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and text in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize("flag", ["--request", "--token_file"])
def test_the_program_tells_a_file_that_is_no_text(flag, tmp_path, capsys):
    path = tmp_path / "latin"
    path.write_bytes(b"\xfc")
    assert run_main({}, "http://127.0.0.1:9", tmp_path, flag, str(path)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {flag}: a readable file in UTF-8 is expected") and said.count("\n") == 1


def test_the_program_ends_when_nobody_answers(tmp_path, capsys):
    for address in ("grpc://127.0.0.1:9", "http://127.0.0.1:9"):
        assert run_main({"user": {}, "candidates": []}, address, tmp_path, "--deadline", "0.2") == 1
        assert capsys.readouterr().err.startswith(f"error: {address}: ")


def test_rest_needs_no_tensorflow(server, request_of_many, tmp_path):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request_of_many))
    program = f"""
import json, sys
from serving.client import Ranker
with Ranker({server.address("http")!r}, "small", deadline=60) as ranker:
    ranking = ranker.rank(**json.load(open({str(path)!r})), user_key="u", history_version=1)
heavy = {{"tensorflow", "keras", "grpc", "google.protobuf", "apache_beam", "trainer", "pydantic"}} & set(sys.modules)
assert not heavy, heavy
print(len(ranking.order))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(request_of_many["candidates"])), done.stderr
