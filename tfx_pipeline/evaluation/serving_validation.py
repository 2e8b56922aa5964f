"""Serves a model as production does, replays requests, and compares every answer with the trainer's own scores."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import httpx
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2
from tfx.utils import io_utils

from serving.client.errors import RankingError
from serving.client.ranker import Ranker
from serving.client.ranking import Ranking
from serving.export.exporter import load_exported_spec
from serving.export.model_files import ASSETS_EXTRA, WARMUP_FILE
from serving.export.signatures import SCORE, SERVING_DEFAULT
from serving.server.errors import ServerError
from serving.server.options import ServerOptions
from serving.server.server_process import ServerProcess
from serving.tools.example_request import client_request
from transform.errors import DataError, UserError
from transform.features import request_example
from transform.spec.ranking_spec import RankingSpec

CANDIDATE, BASELINE = "candidate", "baseline"  # their names on the server
CALL_SECONDS = 60.0
REPLAY_SECONDS = 1800.0  # for all calls
LARGEST_BYTES = 2**30  # of a request: what is too long for TF Serving, the model's own limits reject
CHANNEL_OPTIONS = (  # answers of any size; this machine, whatever proxy the environment names
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
REST_REQUESTS = 20  # JSON takes its time
UNCOUNTED_CALLS = 20  # of `rank`, before its latency is measured
BATCH_REQUESTS = 32

Scores = dict[str, np.ndarray]
"""Of one request: probabilities [N] by task and the fused `score`."""

ScoreRequests = Callable[[Sequence[bytes]], list[Scores]]


@dataclass(frozen=True)
class Tolerance:
    """How far a score may be off: by `absolute`, and by `relative` times itself, as those of rare tasks are small."""

    absolute: float = 1e-5
    relative: float = 1e-3

    def exceeded(self, difference: np.ndarray, score: np.ndarray) -> np.ndarray:
        """How many times a difference is what it may be."""
        return difference / np.minimum(self.absolute, self.relative * np.abs(score) + 1e-9)


EXACT = Tolerance()
# By `serving.cache_dtype`: some ten times what docs/serving.md measured.
CACHE_TOLERANCES = {"float32": EXACT, "float16": Tolerance(1e-3, 0.05), "bfloat16": Tolerance(1e-2, 0.3)}


@dataclass
class ServingReport:
    """What came of a validation; its fields are those of the JSON file.

    Attributes:
        problems: list of str. Why the model can't be served; it is blessed when there are none.
        notes: list of str. What could not be measured.
        requests, candidates: int. What was replayed.
        checks: list of dict. `signature`, `over` (`gRPC` or `REST`), `requests`, `tolerance`, `largest_difference`.
        warmup_requests: int. Records that were replayed.
        start_seconds: float or None. How long the server took to be up, its warm-up included.
        rank_latency_ms: dict. `median` and `p95` by model, `candidate` and `baseline`, as the Python client sees them.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    requests: int = 0
    candidates: int = 0
    checks: list[dict[str, Any]] = field(default_factory=list)
    warmup_requests: int = 0
    start_seconds: float | None = None
    rank_latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """What a served model must keep.

    Attributes:
        start_seconds: float. How long its server may take until it answers.
        max_latency_ratio: float or None. How many times the baseline's its median latency of `rank` may be; None for
            any.
    """

    start_seconds: float
    max_latency_ratio: float | None = None


def validate_serving(
    model: str,
    baseline: str | None,
    requests: Sequence[bytes],
    trainer_scores: ScoreRequests,
    limits: Limits,
    folder: str,
) -> ServingReport:
    """Serves a model in a process of its own, and replays requests through every signature.

    A model that keeps its server from starting, or takes it down, is not blessed; nothing is raised.

    Args:
        model: str. The SavedModel's folder.
        baseline: str, optional. That of the blessed model, whose latency is measured beside.
        requests: sequence of bytes. Serialized request examples; those without candidates are passed over.
        trainer_scores: callable. From requests to the scores that the served ones have to equal.
        limits: Limits.
        folder: str. A local one, for what the server needs; the caller deletes it.

    Returns:
        The report.
    """
    requests = [request for request in requests if request_example.decode(request)[request_example.CANDIDATE_COUNT][0]]
    candidates = sum(request_example.decode(request)[request_example.CANDIDATE_COUNT][0] for request in requests)
    report = partial(ServingReport, requests=len(requests), candidates=candidates)
    if not requests:
        return report(["requests: some with candidates are expected in the eval split. Received: none."])
    expected = trainer_scores(requests)
    unsound = {name for scores in expected for name, values in scores.items() if not np.isfinite(values).all()}
    if unsound:
        problem = (
            f"trainer: finite scores are expected. Received: others, of {', '.join(sorted(unsound))}. "
            "Lower the learning rate, or look for values in the data that are not finite."
        )
        return report([problem])
    failures: list[str] = []
    both = [{CANDIDATE: model, BASELINE: baseline}] if baseline else []
    for number, models in enumerate([*both, {CANDIDATE: model}]):
        found = report()
        for failure in failures:
            _not_measured(f"beside the blessed model: {failure}", limits, found)
        try:
            _replay(models, requests, expected, limits, os.path.join(folder, str(number)), found)
            return found
        except ServerError as error:
            failures.append(str(error))
    return report(failures[-1:])


def _replay(
    models: Mapping[str, str],
    requests: Sequence[bytes],
    expected: Sequence[Scores],
    limits: Limits,
    folder: str,
    report: ServingReport,
) -> None:
    """Fills the report. Raises a ServerError when the server does not come up, or goes while latency is measured."""
    spec = load_exported_spec(models[CANDIDATE])
    with _served(models, folder) as server:
        report.start_seconds = round(server.wait_until_up(limits.start_seconds), 1)
        with (
            Ranker(server.grpc_address, CANDIDATE, deadline=CALL_SECONDS) as over_grpc,
            Ranker(server.rest_address, CANDIDATE, deadline=CALL_SECONDS) as over_rest,
        ):
            end = time.monotonic() + REPLAY_SECONDS
            for check in _checks(spec, server, over_grpc, over_rest, end):
                pairs = zip(requests, expected, strict=True)
                asked = [pair for pair in pairs if len(pair[1][SCORE]) >= check.least_candidates][: check.most]
                try:
                    received = check.score([request for request, _ in asked])
                    report.checks.append(_compare(check, asked, received, report.problems))
                except (RankingError, grpc.RpcError, httpx.HTTPError, LookupError, ValueError, TimeoutError) as error:
                    report.problems.append(f"{check.signature} over {check.over}: {_words(error, server)}")
                    return  # one that has gone answers nothing else
            try:
                report.warmup_requests = _replay_warmup(models[CANDIDATE], server)
            except (grpc.RpcError, DataError) as error:
                report.problems.append(f"warm-up requests: {_words(error, server)}")
            else:
                _compare_latency(models, requests, over_grpc, server, limits, report)


@contextmanager
def _served(models: Mapping[str, str], folder: str) -> Iterator[ServerProcess]:
    """A server of these models, each as version 1; the baseline is not warmed up, as one signature of it is asked.

    Versions are folders of links to files: to delete a link to a folder can mean to delete what is in it.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for name, path in models.items():
        base = os.path.join(folder, name)
        if not os.path.isdir(path):  # of an object store
            io_utils.copy_dir(path, os.path.join(folder, f"{name}-copy"))
            path = os.path.join(folder, f"{name}-copy")
        left_out = () if name == CANDIDATE else (ASSETS_EXTRA,)
        shutil.copytree(
            os.path.abspath(path),
            os.path.join(base, "1"),
            copy_function=os.symlink,
            ignore=shutil.ignore_patterns(*left_out),
        )
        config.model_config_list.config.add(name=name, base_path=base, model_platform="tensorflow")
    config_file = os.path.join(folder, "models.config")
    with open(config_file, "w", encoding="utf-8") as file:
        file.write(text_format.MessageToString(config))
    options = ServerOptions(
        model_config_file=config_file, max_request_bytes=LARGEST_BYTES, max_string_bytes=LARGEST_BYTES
    )
    with ServerProcess(options, os.path.join(folder, "server.log")) as server:
        yield server


# === Scores ===


@dataclass(frozen=True)
class _Check:
    """A way to score requests: what it calls, over what, how many of which of them, and how near it has to come."""

    signature: str
    over: str
    score: ScoreRequests
    most: int | None = None
    least_candidates: int = 1
    tolerance: Tolerance = EXACT


def _checks(spec: RankingSpec, server: ServerProcess, over_grpc: Ranker, over_rest: Ranker, end: float) -> list[_Check]:
    """All ways to the same scores, to be asked until `end` on the monotonic clock."""
    in_steps = CACHE_TOLERANCES[spec.serving.cache_dtype]

    def ranked(ranker: Ranker, requests: Sequence[bytes], **options: Any) -> list[Scores]:
        scores = []
        for request in requests:
            if time.monotonic() > end:
                raise TimeoutError(f"all requests are to be answered within {REPLAY_SECONDS:g} s")
            scores.append(_of_ranking(ranker.rank(**client_request(spec, request_example.decode(request)), **options)))
        return scores

    def cached(requests: Sequence[bytes]) -> list[Scores]:
        """Each request's context is one of its own, encoded first."""
        return [
            scores
            for n, request in enumerate(requests)
            for scores in ranked(over_grpc, [request], user_key=str(n), history_version=0)
        ]

    def in_parts(requests: Sequence[bytes]) -> list[Scores]:
        """In two parts; one candidate alone the client would rank at once."""
        scores, most = [], over_grpc.max_candidates
        try:
            for request in requests:
                over_grpc.max_candidates = -(-request_example.decode(request)[request_example.CANDIDATE_COUNT][0] // 2)
                scores += ranked(over_grpc, [request])
        finally:
            over_grpc.max_candidates = most
        return scores

    return [
        _Check(SERVING_DEFAULT, "gRPC", lambda requests: _serving_default_over_grpc(spec, server, requests)),
        _Check(SERVING_DEFAULT, "REST", lambda found: _serving_default_over_rest(spec, server, found), REST_REQUESTS),
        _Check("rank", "gRPC", lambda requests: ranked(over_grpc, requests)),
        _Check("rank", "REST", lambda requests: ranked(over_rest, requests), REST_REQUESTS),
        _Check("encode_user, rank_with_user_state", "gRPC", cached, tolerance=in_steps),
        _Check("summarize_candidates, score_summary", "gRPC", in_parts, least_candidates=2, tolerance=in_steps),
    ]


def _compare(
    check: _Check, asked: Sequence[tuple[bytes, Scores]], received: Sequence[Scores], problems: list[str]
) -> dict[str, Any]:
    """The check's entry in the report; a problem where scores differ or are not finite."""
    largest, most, where = 0.0, 0.0, ""
    for (request, wanted), scores in zip(asked, received, strict=True):
        for name, values in wanted.items():
            difference = np.abs(scores[name] - values)
            difference[~np.isfinite(difference)] = np.inf
            largest = max(largest, float(difference.max()))
            exceeded = check.tolerance.exceeded(difference, values)
            worst = int(np.argmax(exceeded))
            if exceeded[worst] > most:
                most = float(exceeded[worst])
                name_of = request_example.decode(request)[request_example.REQUEST_ID][0]
                where = f"{scores[name][worst]:.6g} for {values[worst]:.6g}, `{name}` of candidate {worst} in {name_of}"
    if most > 1:
        problems.append(
            f"{check.signature} over {check.over}: the trainer's scores within {check.tolerance.absolute:g} and "
            f"{check.tolerance.relative:.1%} are expected. Received: {where}. Look for what the export does otherwise "
            "than the training."
        )
    return {
        "signature": check.signature,
        "over": check.over,
        "requests": len(received),
        "tolerance": check.tolerance.absolute,
        "largest_difference": largest,
    }


def _of_ranking(ranking: Ranking) -> Scores:
    return {**ranking.tasks, SCORE: ranking.score}


def _serving_default_over_grpc(spec: RankingSpec, server: ServerProcess, requests: Sequence[bytes]) -> list[Scores]:
    scores = []
    with _stub(server) as stub:
        for start in range(0, len(requests), BATCH_REQUESTS):
            batch = requests[start : start + BATCH_REQUESTS]
            call = predict_pb2.PredictRequest()
            call.model_spec.name, call.model_spec.signature_name = CANDIDATE, SERVING_DEFAULT
            call.inputs["examples"].CopyFrom(tf.make_tensor_proto(batch))
            outputs = stub.Predict(call, timeout=CALL_SECONDS).outputs
            scores += _by_request(spec, batch, {name: tf.make_ndarray(proto) for name, proto in outputs.items()})
    return scores


def _serving_default_over_rest(spec: RankingSpec, server: ServerProcess, requests: Sequence[bytes]) -> list[Scores]:
    body = {"inputs": {"examples": [{"b64": base64.b64encode(request).decode()} for request in requests]}}
    url = f"{server.rest_address}/v1/models/{CANDIDATE}:predict"
    response = httpx.post(url, json=body, timeout=CALL_SECONDS, trust_env=False).raise_for_status()
    outputs = {name: np.array(values, np.float32) for name, values in response.json()["outputs"].items()}
    return _by_request(spec, requests, outputs)


def _by_request(spec: RankingSpec, requests: Sequence[bytes], outputs: Mapping[str, np.ndarray]) -> list[Scores]:
    counts = [request_example.decode(request)[request_example.CANDIDATE_COUNT][0] for request in requests]
    names = (*spec.task_names, SCORE)
    return [{name: outputs[name][row, :count] for name in names} for row, count in enumerate(counts)]


@contextmanager
def _stub(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_address.removeprefix("grpc://"), CHANNEL_OPTIONS) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _replay_warmup(model: str, server: ServerProcess) -> int:
    """Sends the model's warm-up requests, and returns how many they are; the server ran them as well when it loaded."""
    path, count = os.path.join(model, ASSETS_EXTRA, WARMUP_FILE), 0
    with _stub(server) as stub:
        for record in tf.data.TFRecordDataset(path) if tf.io.gfile.exists(path) else ():
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            request.model_spec.name = CANDIDATE
            stub.Predict(request, timeout=CALL_SECONDS)
            count += 1
    if not count:
        raise DataError(f"at least one record is expected in {path}. Received: none. Export the model again.")
    return count


# === Latency ===


def _compare_latency(
    models: Mapping[str, str],
    requests: Sequence[bytes],
    candidate: Ranker,
    server: ServerProcess,
    limits: Limits,
    report: ServingReport,
) -> None:
    with Ranker(server.grpc_address, BASELINE, deadline=CALL_SECONDS) as baseline:
        try:
            calls = {
                name: [
                    client_request(load_exported_spec(models[name]), request_example.decode(request))
                    for request in requests
                ]
                for name in models
            }
            times = _times({name: {CANDIDATE: candidate, BASELINE: baseline}[name] for name in models}, calls)
        except UserError as error:  # the blessed model may be of another version; the new one was asked before
            _not_measured(f"latency: it could not be measured: {error}", limits, report)
            return
        except RankingError as error:
            raise ServerError(f"rank: {_words(error, server)}") from error
    for name, milliseconds in times.items():
        median, p95 = np.quantile(milliseconds, (0.5, 0.95)).round(3).tolist()
        report.rank_latency_ms[name] = {"median": median, "p95": p95}
    if limits.max_latency_ratio is None or BASELINE not in models:
        return
    now, before = (report.rank_latency_ms[name]["median"] for name in (CANDIDATE, BASELINE))
    if now > limits.max_latency_ratio * before:
        report.problems.append(
            f"rank: a median latency of at most {limits.max_latency_ratio:g} times the blessed model's is expected "
            f"(evaluation.max_latency_ratio). Received: {now:.1f} ms for {before:.1f} ms. Make the model smaller, or "
            "allow more."
        )


def _not_measured(why: str, limits: Limits, report: ServingReport) -> None:
    """A note, or a problem where a limit was set that nobody can say is kept."""
    if limits.max_latency_ratio is None:
        report.notes.append(why)
    else:
        report.problems.append(
            f"{why} A latency to compare with is expected (evaluation.max_latency_ratio). Leave the key out to push "
            "without."
        )


def _times(rankers: Mapping[str, Ranker], calls: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Milliseconds of each call of `rank`, by model, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in rankers}
    for n in range(-UNCOUNTED_CALLS, len(calls[CANDIDATE])):
        for name in sorted(rankers, reverse=bool(n % 2)):
            request = calls[name][n % len(calls[name])]
            started = time.perf_counter()
            rankers[name].rank(**request)
            if n >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def _words(error: Exception, server: ServerProcess) -> str:
    """What went wrong on one line, and how the server is."""
    if isinstance(error, DataError):
        return str(error)
    details = error.details() if isinstance(error, grpc.RpcError) else f"{type(error).__name__}: {error}"
    return f"scores are expected. Received: {' '.join(details.split())} ({server.how_it_goes()})."
