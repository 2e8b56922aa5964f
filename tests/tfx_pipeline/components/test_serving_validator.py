"""Models that serve as they were trained, and others: each in a server of its own. A whole run is in test_pipeline.py.

The models here are made by hand, small enough that their servers are up in seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tfx.types import standard_artifacts

from serving.export.model_files import ASSETS_EXTRA, SPEC_FILE, WARMUP_FILE
from serving.export.raw_inputs import input_specs
from serving.export.warmup_requests import warmup_requests
from serving.server.server_process import ServerProcess
from tests.testing.repository import repository
from tfx_pipeline.components.atomic_pusher import AtomicPusherExecutor
from tfx_pipeline.evaluation import serving_validation
from tfx_pipeline.evaluation.serving_validation import Limits, validate_serving
from transform.features import request_example
from transform.spec.ranking_spec import RankingSpec

pytestmark = pytest.mark.server

SPEC = RankingSpec.model_validate(
    {
        "name": "mail",
        "data": {"impressions": {"files": ["visits.csv"]}},
        "request": {"id": "visit", "time": "at"},
        "split": {"by": "week", "train": [1, 1], "eval": [2, 2], "test": [3, 3]},
        "tasks": [{"name": "open", "label": "opened"}],
        "features": {
            "user": [{"name": "person", "column": "who", "type": "categorical"}],
            "candidate": [{"name": "strength", "type": "numeric"}],
        },
    }
)
SECONDS = 120


class HandMade(tf.Module):
    """Scores by a candidate's strength and the length of a person's name.

    Args:
        bias: float. Added to every logit.
        of_rank: float. Added to the logits of `rank` alone.
    """

    def __init__(self, bias: float = 0.0, of_rank: float = 0.0):
        super().__init__()
        self.bias = tf.Variable(bias)
        self.of_rank = of_rank

    def all(self) -> dict:
        f32, raw = tf.float32, input_specs(SPEC)
        cache, candidates = {"cache_size": tf.TensorSpec([None], f32)}, raw["candidates"]
        states = {name: tf.TensorSpec([None, None], f32) for name in ("state_logit", "candidate_mask")}
        return {
            "serving_default": _named(self._serving_default, {"examples": tf.TensorSpec([None], tf.string)}),
            "rank": _named(self._rank, {**raw["user"], **candidates}),
            "encode_user": _named(self._encode_user, raw["user"]),
            "rank_with_user_state": _named(self._rank_with_user_state, {**cache, **candidates}),
            "summarize_candidates": _named(self._summarize, {**cache, **candidates}),
            "score_summary": _named(self._score_summary, {**cache, **states}),
        }

    def _serving_default(self, examples):
        keys = {"person": tf.string, "strength": tf.float32, "candidate_count": tf.int64}
        parsed = tf.io.parse_example(examples, {key: tf.io.RaggedFeature(dtype) for key, dtype in keys.items()})
        dense = {key: tensor.to_tensor() for key, tensor in parsed.items()}
        cache = self._encode_user(dense["person"][:, 0])
        return self._rank_with_user_state(
            **cache, strength=dense["strength"], candidate_count=dense["candidate_count"][:, 0]
        )

    def _rank(self, person, strength, candidate_count):
        cache = self._encode_user(person)
        return self._rank_with_user_state(**cache, strength=strength + self.of_rank, candidate_count=candidate_count)

    def _encode_user(self, person):
        return {"cache_size": tf.cast(tf.strings.length(person), tf.float32)}

    def _rank_with_user_state(self, cache_size, strength, candidate_count):
        return self._score_summary(cache_size, **self._summarize(cache_size, strength, candidate_count))

    def _summarize(self, cache_size, strength, candidate_count):
        mask = tf.sequence_mask(candidate_count, tf.shape(strength)[1], tf.float32)
        return {"state_logit": strength + 0 * cache_size[:, None], "candidate_mask": mask}

    def _score_summary(self, cache_size, state_logit, candidate_mask):
        scores = tf.sigmoid(state_logit + 0.1 * cache_size[:, None] + self.bias) * candidate_mask
        return {"open": scores, "score": scores + 0, "candidate_mask": candidate_mask + 0}


def _named(function, specs):
    named = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}
    return tf.function(lambda **inputs: function(**inputs)).get_concrete_function(**named)


def write(path: Path, **settings: float) -> Path:
    module = HandMade(**settings)
    signatures = module.all()
    tf.saved_model.save(module, str(path), signatures=signatures)
    (path / ASSETS_EXTRA).mkdir()
    (path / ASSETS_EXTRA / SPEC_FILE).write_text(SPEC.to_json())
    with tf.io.TFRecordWriter(str(path / ASSETS_EXTRA / WARMUP_FILE)) as file:
        for record in warmup_requests(SPEC, signatures):
            file.write(record)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "good")


REQUESTS = [
    request_example.encode(
        {
            "request_id": [f"v{n}"],
            "person": ["p" * (1 + n % 4)],
            "strength": [0.3 * i - n / 9 for i in range(n % 5)],
            "candidate_count": [n % 5],
        }
    ).SerializeToString()
    for n in range(30)
]


def trained(requests: list[bytes]) -> list[dict[str, np.ndarray]]:
    found = []
    for values in map(request_example.decode, requests):
        scores = 1 / (1 + np.exp(-np.array(values["strength"]) - 0.1 * len(values["person"][0])))
        found.append({"open": scores, "score": scores})
    return found


@pytest.fixture(autouse=True)
def proxies(monkeypatch):
    """An environment with proxies, where nobody answers: what is on this machine must not be asked through them."""
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def validate(tmp_path):
    def validated(model: Path, baseline: Path | None = None, requests=REQUESTS, scores=trained, **limits: float):
        folder = tmp_path / "validation"
        folder.mkdir()
        bounds = Limits(**{"start_seconds": SECONDS, **limits})
        files = sorted(path for path in model.rglob("*") if path.is_file())
        report = validate_serving(
            str(model), str(baseline) if baseline else None, requests, scores, bounds, str(folder)
        )
        tf.io.gfile.rmtree(str(folder))  # as a run does that finds it left behind: it goes through links to folders
        assert sorted(path for path in model.rglob("*") if path.is_file()) == files
        return report

    return validated


def test_a_good_model_is_served_whatever_is_wrong_with_the_blessed_one(validate, good, tmp_path):
    shutil.copytree(good, tmp_path / "broken")
    (tmp_path / "broken" / "variables" / "variables.index").unlink()
    report = validate(good, tmp_path / "broken")
    assert report.problems == []
    (note,) = report.notes
    assert "beside the blessed model: server: " in note and "variables.index is missing" in note
    assert (report.requests, report.candidates) == (24, 60), "a request without candidates has no scores"
    asked = {(check["signature"], check["over"]): check["requests"] for check in report.checks}
    assert asked == {
        ("serving_default", "gRPC"): 24,
        ("serving_default", "REST"): 20,
        ("rank", "gRPC"): 24,
        ("rank", "REST"): 20,
        ("encode_user, rank_with_user_state", "gRPC"): 24,
        ("summarize_candidates, score_summary", "gRPC"): 18,
    }
    assert max(check["largest_difference"] for check in report.checks) < 1e-6
    assert report.warmup_requests == 6 * 3 - 2, "three sizes; encode_user knows of no candidates"
    assert report.rank_latency_ms.keys() == {"candidate"}
    (problem,) = validate(good, tmp_path / "broken", max_latency_ratio=2.0).problems
    assert "variables.index is missing" in problem and "A latency to compare with is expected" in problem


def test_small_scores_are_compared_by_their_own_size(validate, good, tmp_path):
    def rare(requests):
        return [{name: values * 1e-6 for name, values in scores.items()} for scores in trained(requests)]

    problems = validate(write(tmp_path / "nothing", bias=-60.0), scores=rare).problems
    assert len(problems) == 6 and all("e-07, `" in problem for problem in problems)


def test_a_model_that_answers_too_slowly_is_not_asked_for_hours(validate, good, monkeypatch):
    monkeypatch.setattr(serving_validation, "REPLAY_SECONDS", 0.0)
    (problem,) = validate(good).problems
    assert "rank over gRPC: scores are expected. Received: TimeoutError: all requests are to be answered" in problem


def test_a_signature_with_other_scores_is_found_and_so_is_a_slow_model(validate, good, tmp_path):
    report = validate(write(tmp_path / "off", of_rank=0.01), good, max_latency_ratio=1e-6)
    grpc, rest, latency = report.problems
    assert grpc.startswith("rank over gRPC: the trainer's scores within 1e-05 and 0.1% are expected. Received: 0.")
    assert "`open` of candidate " in grpc and " in v" in grpc
    assert rest.startswith("rank over REST: ")
    assert latency.startswith("rank: a median latency of at most 1e-06 times the blessed model's is expected")
    assert report.rank_latency_ms.keys() == {"candidate", "baseline"}
    others = [check for check in report.checks if check["signature"] != "rank"]
    assert len(others) == 4 and max(check["largest_difference"] for check in others) < 1e-6


def test_a_model_that_gives_nan_is_found(validate, tmp_path):
    report = validate(write(tmp_path / "nan", bias=float("nan")))
    assert len(report.problems) == len(report.checks) == 6
    assert all("Received: nan for 0." in problem for problem in report.problems)


def test_a_trainer_that_gives_nan_is_found_before_anything_is_served(validate, good):
    scores = [{"open": np.array([0.5, np.nan])}]
    report = validate(good, requests=REQUESTS[2:3], scores=lambda _: scores)
    assert report.problems == [
        "trainer: finite scores are expected. Received: others, of open. Lower the learning rate, or look for values "
        "in the data that are not finite."
    ]


def test_a_server_that_does_not_start_is_told_with_its_last_words(validate, good, tmp_path):
    shutil.copytree(good, tmp_path / "broken")
    (tmp_path / "broken" / "variables" / "variables.index").unlink()
    (problem,) = validate(tmp_path / "broken").problems
    assert problem.startswith(
        f"server: it is expected to be up within {SECONDS} s. Received: it ended with exit code 1"
    )
    assert "variables.index is missing" in problem and "\n" not in problem


def test_a_server_that_takes_too_long_is_not_waited_for(validate, good):
    (problem,) = validate(good, start_seconds=0.01).problems
    assert problem.startswith("server: it is expected to be up within 0.01 s. Received: it still runs; it said last: ")


def test_a_server_that_dies_is_told(validate, good, monkeypatch):
    wait = ServerProcess.wait_until_up

    def then_die(server, seconds):
        taken = wait(server, seconds)
        server._process.kill()
        server._process.wait()
        return taken

    monkeypatch.setattr(ServerProcess, "wait_until_up", then_die)
    (problem,) = validate(good).problems
    assert problem.startswith("serving_default over gRPC: scores are expected. Received: ")
    assert "it was ended by signal 9" in problem and "\n" not in problem


def test_a_server_ends_with_the_process_that_started_it(good, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "1").symlink_to(good)
    program = (
        "import sys, time; from serving.server.options import ServerOptions; "
        "from serving.server.server_process import ServerProcess; "
        "server = ServerProcess(ServerOptions(model_base_path=sys.argv[1]), sys.argv[2]).__enter__(); "
        f"server.wait_until_up({SECONDS}); print(server._process.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "models"), str(tmp_path / "server.log")]
    environment = {**os.environ, "PYTHONPATH": str(repository())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert _is_running(pid)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + SECONDS
    while _is_running(pid):
        assert time.monotonic() < end, "the server is an orphan"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_could_not_be_served_is_not_pushed(good, tmp_path):
    model, blessing, serving = (
        kind()
        for kind in (standard_artifacts.Model, standard_artifacts.ModelBlessing, standard_artifacts.InfraBlessing)
    )
    model.uri = str(tmp_path / "model")
    shutil.copytree(good, tmp_path / "model" / "Format-Serving")
    blessing.set_int_custom_property("blessed", 1)
    for served in (0, 1):
        serving.set_int_custom_property("blessed", served)
        pushed = standard_artifacts.PushedModel()
        AtomicPusherExecutor().Do(
            {"model": [model], "model_blessing": [blessing], "infra_blessing": [serving]},
            {"pushed_model": [pushed]},
            {"push_destination": f'{{"filesystem": {{"base_directory": "{tmp_path}/serving/mail"}}}}'},
        )
        assert pushed.get_int_custom_property("pushed") == served
        assert (tmp_path / "serving" / "mail").exists() == bool(served)
