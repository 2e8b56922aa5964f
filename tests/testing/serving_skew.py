"""Training and serving compute one number: a model's probabilities for a request by every way there is to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.client import Ranker
from serving.export.raw_inputs import raw_values
from serving.export.signatures import CANDIDATE_MASK, ENCODE_USER, RANK, RANK_WITH_USER_STATE, SCORE, SERVING_DEFAULT
from serving.tools.example_request import client_request
from trainer.models.base import RankingModel
from transform.features import request_example
from transform.features.dataset import parse_transformed, to_batch
from transform.ingest.prepare import Prepared
from transform.spec.ranking_spec import RankingSpec

BATCH = 64
CHUNK = 2  # candidates, so that requests of few have parts

Row = dict[str, Any]
Scores = list[np.ndarray]  # one per request, [N, K + 1]: a probability per task, then the fused score


def compare(
    prepared: Prepared, model: RankingModel, loaded: Any, name: str, addresses: Mapping[str, str], most: int
) -> list[Row]:
    """How far from the Trainer's model each other way is, over requests of the test split.

    Args:
        prepared: Prepared.
        model: RankingModel. As the Trainer holds it.
        loaded: the SavedModel that it was exported to.
        name: str. The model's name on the server.
        addresses: mapping. Of a server that serves it, by protocol, `grpc` and `http`.
        most: int. The most requests.

    Returns:
        A row a way: `way`, `requests`, `candidates`, `difference`, the largest absolute one of a probability or score;
        and `spread`, the standard deviation of a task's probabilities, the least of all tasks.
    """
    spec = prepared.spec
    raw, transformed = _pairs(prepared, most)
    expected = _trained(spec, model, transformed)
    spread = float(np.concatenate(expected)[:, :-1].std(axis=0).min())
    signatures = loaded.signatures
    ways = {
        SERVING_DEFAULT: _serving_default(spec, signatures, raw),
        RANK: [_in_steps(spec, signatures, request, [RANK]) for request in raw],
        f"{ENCODE_USER} + {RANK_WITH_USER_STATE}": [
            _in_steps(spec, signatures, request, [ENCODE_USER, RANK_WITH_USER_STATE]) for request in raw
        ],
        "gRPC": _asked(spec, addresses["grpc"], name, raw),
        "gRPC, user states kept": _asked(spec, addresses["grpc"], name, raw, keep=True),
        f"gRPC, in parts of {CHUNK}": _asked(spec, addresses["grpc"], name, raw, max_candidates=CHUNK),
        "REST": _asked(spec, addresses["http"], name, raw),
    }
    return [
        {
            "way": way,
            "requests": len(scores),
            "candidates": sum(map(len, scores)),
            "difference": max(float(np.abs(a - b).max()) for a, b in zip(scores, expected, strict=True)),
            "spread": spread,
        }
        for way, scores in ways.items()
    ]


def _pairs(prepared: Prepared, most: int) -> tuple[list[bytes], list[bytes]]:
    """Requests before and after Transform, which keeps their ids, and no order."""

    def read(kind: str) -> Iterator[tuple[str, bytes]]:
        for record in tf.data.TFRecordDataset(prepared.files(kind, "test"), "GZIP").as_numpy_iterator():
            ids = tf.train.Example.FromString(record).features.feature[request_example.REQUEST_ID]
            yield ids.bytes_list.value[0], record

    transformed = defaultdict(list)
    for key, record in read("transformed"):
        transformed[key].append(record)
    pairs = [(record, transformed[key][0]) for key, record in read("raw") if len(transformed[key]) == 1][:most]
    return [raw for raw, _ in pairs], [after for _, after in pairs]


# === Ways ===


def _trained(spec: RankingSpec, model: RankingModel, transformed: Sequence[bytes]) -> Scores:
    powers = np.array([spec.score_powers.get(task, 0.0) for task in spec.task_names])
    found = []
    for start in range(0, len(transformed), BATCH):
        serialized = tf.constant(transformed[start : start + BATCH])
        batch = to_batch(model.inputs_spec, parse_transformed(model.inputs_spec, serialized))
        probabilities = tf.sigmoid(model(batch, training=False)).numpy()
        for per_request, mask in zip(probabilities, batch["candidates"]["mask"].numpy(), strict=True):
            score = np.exp(np.log(per_request[mask]) @ powers)
            found.append(np.concatenate([per_request[mask], score[:, None]], axis=1))
    return found


def _serving_default(spec: RankingSpec, signatures: Any, raw: Sequence[bytes]) -> Scores:
    found = []
    for start in range(0, len(raw), BATCH):
        outputs = signatures[SERVING_DEFAULT](examples=tf.constant(raw[start : start + BATCH]))
        scores = _stacked(spec, outputs)
        found += [per_request[mask > 0] for per_request, mask in zip(scores, outputs[CANDIDATE_MASK], strict=True)]
    return found


def _in_steps(spec: RankingSpec, signatures: Any, request: bytes, names: Sequence[str]) -> np.ndarray:
    """The last signature's answer; it gets the answers of those before it."""
    values = request_example.decode(request)
    tensors: dict[str, Any] = raw_values(spec, values)
    for name in names:
        inputs = signatures[name].structured_input_signature[1]
        tensors |= signatures[name](**{key: tf.constant(tensors[key]) for key in inputs})
    return _stacked(spec, tensors)[0, : values[request_example.CANDIDATE_COUNT][0]]


def _asked(
    spec: RankingSpec, address: str, name: str, raw: Sequence[bytes], keep: bool = False, **options: Any
) -> Scores:
    """What a client is told; with `keep` when it asks for the second time, and has the user state."""
    found = []
    with Ranker(address, name, deadline=60, refresh=3600, **options) as ranker:
        for number, request in enumerate(raw):
            arguments = client_request(spec, request_example.decode(request))
            if keep:
                arguments |= {"user_key": str(number), "history_version": 1}
                ranker.rank(**arguments)
            ranking = ranker.rank(**arguments)
            assert ranking.user_state_cached == keep
            found.append(np.stack([*(ranking.tasks[task] for task in spec.task_names), ranking.score], axis=-1))
    return found


def _stacked(spec: RankingSpec, outputs: Mapping[str, Any]) -> np.ndarray:
    """[..., K + 1]."""
    return np.stack([np.asarray(outputs[name]) for name in (*spec.task_names, SCORE)], axis=-1)
