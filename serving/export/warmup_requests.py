"""Warm-up requests: what a server runs through a model that it has loaded, before it takes anyone's requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.export.raw_inputs import raw_values, sequence_keys
from serving.export.signatures import ENCODE_USER, SUMMARIZE_CANDIDATES
from transform.features import request_example
from transform.spec.ranking_spec import RankingSpec


def warmup_requests(
    spec: RankingSpec, signatures: Mapping[str, Any], requests: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """A request to each signature for each number of candidates in `serving.warmup_candidates`.

    Args:
        spec: RankingSpec.
        signatures: mapping. Concrete functions by name, those whose outputs others take before them.
        requests: sequence of bytes. Serialized request examples to make them of, their candidates repeated; those
            without candidates are left out. Defaults to one that is made up, with full sequences.

    Returns:
        The records of the file that TF Serving reads: serialized `PredictionLog`s.
    """
    decoded = [request_example.decode(request) for request in requests]
    known = [request for request in decoded if request[request_example.CANDIDATE_COUNT][0]] or [_made_up(spec)]
    seen: set[bytes] = set()
    for index, size in enumerate(spec.serving.warmup_sizes):
        request = with_candidates(spec, known[index % len(known)], size)
        tensors = {name: tf.constant(values) for name, values in raw_values(spec, request).items()}
        tensors["examples"] = tf.constant([request_example.encode(request).SerializeToString(deterministic=True)])
        for signature, function in signatures.items():
            inputs = {name: tensors[name] for name in function.structured_input_signature[1]}
            if signature in (ENCODE_USER, SUMMARIZE_CANDIDATES):  # inputs of others
                tensors.update(function(**inputs))
            record = _log(spec.name, signature, inputs).SerializeToString(deterministic=True)
            if record not in seen:  # not all depend on the candidates
                seen.add(record)
                yield record


def _log(model: str, signature: str, inputs: Mapping[str, tf.Tensor]) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, tensor in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(tensor))
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))


# === Requests ===


def _made_up(spec: RankingSpec) -> dict[str, list[Any]]:
    """A request of one candidate, all sets of one member, whose sequences are full."""
    ones = {tf.string: "1", tf.int64: 1, tf.float32: 1.0}
    values = {key: [ones[dtype]] for key, dtype in request_example.input_dtypes(spec).items()}
    full = {key: values[key] * sequence.length for sequence in spec.sequences for key in sequence_keys(sequence)}
    return {**values, **full}


def with_candidates(spec: RankingSpec, request: Mapping[str, list[Any]], size: int) -> dict[str, list[Any]]:
    """A request with so many candidates: its own, again and again.

    Args:
        spec: RankingSpec.
        request: mapping. A request example's lists by key, of at least one candidate.
        size: int. N.

    Returns:
        The lists by key of what a model reads.
    """
    places = list(islice(cycle(range(request[request_example.CANDIDATE_COUNT][0])), size))
    values = {key: request.get(key, []) for key in request_example.input_dtypes(spec)}
    for feature in spec.candidate_features():
        found = feature.decode(values)
        values.update(feature.encode([found[place] for place in places]))
    return {**values, request_example.CANDIDATE_COUNT: [size]}
