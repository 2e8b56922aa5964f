"""The benchmark of serving measures, on a model that is small, what it says it measures."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.serving import load, request_cost, server_load
from benchmarks.serving.load_clients import Answer, LoadClients, faults
from benchmarks.serving.server_process import ServerProcess
from benchmarks.serving.sized_requests import joined, sized
from serving.client import RankingUnavailable
from serving.client.ranking import Ranking
from serving.export.raw_inputs import raw_values
from serving.export.signatures import ENCODE_USER, RANK, RANK_WITH_USER_STATE
from serving.tools.example_request import client_request
from tests.testing.repository import repository
from transform.features import request_example

SIZES = replace(request_cost.QUICK, candidates={5: (2, 3)}, repeated=(3,), history=5, rounds=2, seconds=0.4)


@pytest.fixture(scope="module")
def records(small):
    return list(tf.data.TFRecordDataset(small.raw["test"], "GZIP").take(9).as_numpy_iterator())


@pytest.fixture(scope="module")
def request_of(served, records):
    return partial(sized, served.spec, joined(served.spec, records))


@pytest.fixture(scope="module")
def direct(served):
    return request_cost.Direct(served.spec, Path(served.path))


def test_requests_have_the_size_asked_for(served, request_of):
    request = request_of(5, 11)
    raw = raw_values(served.spec, request)
    assert raw["candidate_count"].tolist() == [11] and raw["price"].shape == (1, 11)
    assert raw["seen_length"].tolist() == [5] and raw["seen_item"].shape == (1, 5)
    arguments = client_request(served.spec, request)
    assert len(arguments["candidates"]) == 11 and len(arguments["sequences"]["bought"]) == 5
    assert len({*raw["price"][0].tolist()}) > 5, "candidates of several requests"


def test_a_repeated_history_is_as_many_requests_of_one_candidate(direct, request_of, monkeypatch):
    monkeypatch.setattr(request_cost, "ROWS", 3)
    raw = raw_values(direct.spec, request_of(5, 7))
    outputs = direct.repeated(raw)()
    found = np.concatenate([part["buy"].numpy() for part in outputs])
    assert found.shape == (7, 1) and len(outputs) == 3
    expected = [direct.bind(RANK, raw_values(direct.spec, one))()["buy"] for one in _alone(direct.spec, request_of)]
    np.testing.assert_allclose(found[:, 0], np.ravel(expected), atol=1e-5)


def _alone(spec, request_of):
    """Each candidate of the request in one of its own, told from the others by what it holds."""
    request = request_of(5, 7)
    ends = np.cumsum([0, *request["tags_length"]])
    for n in range(7):
        of_one = {f.name: request[f.name][n : n + 1] for f in spec.candidate_features() if f.name != "tags"}
        tags = {"tags": request["tags"][ends[n] : ends[n + 1]], "tags_length": request["tags_length"][n : n + 1]}
        yield {**request, **of_one, **tags, request_example.CANDIDATE_COUNT: [1]}


@pytest.mark.server
def test_it_measures_in_process_and_through_the_server(served, direct, request_of, tmp_path, capsys):
    rows = request_cost.measure_history(direct, partial(request_of, 5), 5, (2, 3), SIZES)
    rows += request_cost.measure_repeated(direct, partial(request_of, 5), SIZES)
    inputs = raw_values(served.spec, request_of(5, 3))
    functions = request_cost._functions()
    direct.bind(RANK, inputs)()
    assert request_cost._functions() == functions
    traced = tf.function(lambda x: x + 1).get_concrete_function(1)
    assert traced and request_cost._functions() != functions, "a trace is seen"
    with ServerProcess(Path(served.path).parent, request_cost.NAME, tmp_path / "log") as server:
        through_server, highest = request_cost.measure_server(direct, server, inputs, SIZES)
        assert request_cost._new_shapes(server.addresses["http"]) == 1  # warm-up had other lengths
        assert 50 < server.memory_mib < 10_000
    rows += through_server
    assert highest > 0
    assert [(row["candidates"], row["way"]) for row in rows] == [
        (2, RANK),
        (2, RANK_WITH_USER_STATE),
        (3, RANK),
        (3, RANK_WITH_USER_STATE),
        (0, ENCODE_USER),
        (3, request_cost.REPEATED),
        (3, "gRPC"),
        (3, "REST"),
        *((3, f"gRPC, {share}% load") for share in (30, 50, 70)),
    ]
    for row in rows:
        assert row["calls"] > 1 and 0 < row["median_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["cpu_ms"] > 0, row
    assert all(row["overhead_ms"] > 0 for row in rows if row["way"] in ("gRPC", "REST"))

    figures = request_cost.find_figures(rows, [{"difference": 2e-7}], 0)
    assert set(figures) == {
        "serving.max_abs_skew",
        "serving.retraces_after_warmup",
        "serving.p99_over_p50",
        "serving.rest_overhead_ms",
        "serving.grpc_overhead_ms",
    }
    skew = [{"way": "gRPC", "requests": 3, "candidates": 4, "difference": 2e-7, "spread": 0.1}]
    facts = {"machine": request_cost.measure.machine(), "versions": {}, "threads": 1, "commit": "-"}
    (tmp_path / "a.json").write_text(json.dumps({**facts, "rows": rows, "skew": skew, "figures": figures}))
    capsys.readouterr()
    assert request_cost.main(["--tables", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    assert "**History of 5 events**" in printed and "| serving.max_abs_skew | 2e-07 |" in printed


def test_figures_are_those_of_the_sizes_that_targets_are_about():
    def row(n, way, **found):
        ratios = {
            key: {"median": ratio} for key, ratio in found.items() if key.startswith("over_n") or key == "over_rank"
        }
        return {"history": 512, "candidates": n, "way": way, "p99_ms": 3.0, "median_ms": 2.0, **found, **ratios}

    rows = [
        {**row(100, request_cost.REPEATED, over_rank=9.0), "history": 50},
        row(100, request_cost.REPEATED, over_rank=44.0),
        row(500, request_cost.REPEATED, over_rank=71.0),
        row(50, RANK_WITH_USER_STATE, over_rank=0.4),
        row(1000, RANK, over_n100=5.5),
        row(100, "gRPC", overhead_ms=2.5),
        row(100, "REST", overhead_ms=7.5),
        row(100, "gRPC, 70% load"),
    ]
    assert request_cost.find_figures(rows, [{"difference": 1e-7}, {"difference": 3e-7}], 4) == {
        "serving.sharing.N100": 44.0,
        "serving.sharing.N500": 71.0,
        "serving.cache_hit.N50": 2.5,
        "serving.growth.N100_N1000": 5.5,
        "serving.max_abs_skew": 3e-7,
        "serving.retraces_after_warmup": 4,
        "serving.p99_over_p50": 1.5,
        "serving.rest_overhead_ms": 7.5,
        "serving.grpc_overhead_ms": 2.5,
    }


def test_the_served_model_has_one_history_of_the_longest_length(small):
    spec = request_cost.served_spec(small.spec, SIZES, request_cost.MODEL)
    assert [(sequence.name, sequence.length) for sequence in spec.sequences] == [("seen", 5)]
    assert spec.model == request_cost.MODEL and spec.serving.warmup_sizes == (100,)


# === Load ===


def test_requests_come_when_they_are_due_and_waiting_counts():
    seconds = load.open_loop(lambda: time.sleep(0.02), rate=100, seconds=0.5, workers=1)
    assert len(seconds) == 50 and max(seconds) > 0.3  # one worker manages half
    assert len(load.closed_loop(lambda: time.sleep(0.02), workers=4, seconds=0.2)) > 8
    rate, workers = load.highest_rate(lambda: time.sleep(0.02), 0.3, workers=(1, 2))
    assert workers == 2 and 50 < rate <= 100


class Known:
    """Versions whose scores are their numbers."""

    def __init__(self, spec):
        self.spec = spec

    def scores(self, version, request):
        return np.full((3, 4), version / 10, np.float32)


def test_the_load_tells_right_wrong_and_failed_answers(served, request_of, monkeypatch):
    clients = LoadClients(Known(served.spec), [request_of(5, 4)], {"grpc": "grpc://x:1", "http": "http://x:1"}, "m")

    def answered(version, score):
        tasks = dict.fromkeys(("buy", "save", "share"), np.full(4, score, np.float32))
        return Ranking(tasks, np.zeros(4), np.arange(4), version, user_state_cached=False)

    def fail(**_):
        raise RankingUnavailable("nobody is there")

    answers = [lambda **_: answered(1, 0.1), lambda **_: answered(2, 0.1), lambda **_: answered(2, 0.2), fail]
    for answer in answers:
        for ranker in clients._rankers:
            monkeypatch.setattr(ranker, "rank", answer)
        clients.ask()
    found = clients.take()
    assert [answer.fault for answer in found] == ["", "wrong", "", "RankingUnavailable: nobody is there"]
    assert clients.totals == {"answers": 4, "failed": 1, "wrong": 1} and clients.asked == 4
    clients.close()


def test_a_run_that_is_not_as_asked_says_so():
    row = server_load._row(0, [Answer(1.0, 0.1, 1), Answer(2.0, 0.3, 1)], 2.0, 300.0)
    assert row["per_second"] == 1 and row["by_version"] == {"1": 2} and row["failed"] == row["wrong"] == 0
    figures = dict.fromkeys(("failed", "wrong", "unanswered", "memory_growth_percent"), 0)
    good = {
        "rows": [row],
        "faults": [{"as_asked": True}],
        "figures": {f"serving_load.{k}": v for k, v in figures.items()},
    }
    assert server_load.missed(good) == []
    for name in figures:
        bad = {**good, "figures": {**good["figures"], f"serving_load.{name}": 50}}
        assert len(server_load.missed(bad)) == 1
    assert server_load.missed({**good, "faults": [{"as_asked": False}]}) == ["faults are survived"]
    assert server_load.missed({**good, "rows": [row, row]}) == ["every version answers"]
    assert faults([Answer(1, 1, 0, "wrong"), Answer(1, 1, 0, "Error: x")]) == {"failed": 1, "wrong": 1}


@pytest.mark.parametrize("module", [request_cost, server_load])
def test_the_readme_shows_the_results_that_are_kept(module):
    folder = repository() / "benchmarks"
    path = folder / f"serving/{module.__name__.rsplit('.')[-1]}.json"
    if not path.exists():
        pytest.skip("no results are kept")
    assert module.tables(json.loads(path.read_text())) in (folder / "README.md").read_text()
