"""Requests as clients send them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transform.features import request_example
from transform.features.request_example import sequence_key


def request_examples(small) -> list[bytes]:
    return [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP")]


def raw_inputs(spec, requests: list[bytes], extra_padding: int = 0) -> dict[str, np.ndarray]:
    """The inputs of `rank` as a client would build them: padded lists, with lengths beside them."""
    decoded = [request_example.decode(request) for request in requests]
    dtypes = request_example.input_dtypes(spec)
    raw = {request_example.CANDIDATE_COUNT: np.array([v[request_example.CANDIDATE_COUNT][0] for v in decoded], "int64")}
    n = max(raw[request_example.CANDIDATE_COUNT]) + extra_padding

    def padded(lists: list[list], size: int, dtype: tf.DType) -> np.ndarray:
        filler = "" if dtype == tf.string else 0
        return np.array([values + [filler] * (size - len(values)) for values in lists], dtype.as_numpy_dtype)

    for group, feature in spec.feature_groups():
        dtype = dtypes[feature.name]
        lists = [values[feature.name] for values in decoded]
        if group != "candidate":
            raw[feature.name] = padded(lists, 1, dtype)[:, 0]
        elif feature.type == "categorical_set":
            raw[feature.name] = _padded_sets(decoded, feature.name, n)
        else:
            raw[feature.name] = padded(lists, n, dtype)
    for sequence in spec.sequences:
        parts = (*sequence.features, *sequence.feedback)
        lists = {part: [values[sequence_key(sequence.name, part)] for values in decoded] for part in parts}
        lengths = [len(values) for values in lists[parts[0]]]
        raw[request_example.length_key(sequence.name)] = np.array(lengths, "int64")
        for part in parts:
            key = sequence_key(sequence.name, part)
            raw[key] = padded(lists[part], max(lengths) + extra_padding, dtypes[key])
    return raw


def _padded_sets(decoded: list[dict], name: str, n: int) -> np.ndarray:
    widest = max((length for values in decoded for length in values[request_example.length_key(name)]), default=0)
    sets = np.full((len(decoded), n, widest), "", object)
    for row, values in enumerate(decoded):
        members = iter(values[name])
        for column, length in enumerate(values[request_example.length_key(name)]):
            sets[row, column, :length] = [next(members) for _ in range(length)]
    return sets


def constants(spec, raw: dict[str, np.ndarray], keys) -> dict[str, tf.Tensor]:
    dtypes = request_example.input_dtypes(spec)
    return {
        key: tf.constant(
            raw[key].tolist() if raw[key].dtype == object else raw[key], _dtype(dtypes, key), raw[key].shape
        )
        for key in keys
    }


def _dtype(dtypes, key):
    return dtypes.get(key, tf.int64)


def joined_request(spec, requests: list[bytes]) -> dict[str, list]:
    """The first request, with the candidates of all."""
    decoded = [request_example.decode(request) for request in requests]
    keys = [feature.name for feature in spec.candidate_features()]
    keys += [request_example.length_key(f.name) for f in spec.candidate_features() if f.type == "categorical_set"]
    lists = {key: [value for values in decoded for value in values[key]] for key in keys}
    return {**decoded[0], **lists, request_example.CANDIDATE_COUNT: [len(lists[keys[0]])]}


def call(function, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a signature answers; of the tensors it takes its inputs."""
    inputs = {name: tf.constant(tensors[name]) for name in function.structured_input_signature[1]}
    return {name: tensor.numpy() for name, tensor in function(**inputs).items()}


def in_two_steps(signatures, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return call(signatures["rank_with_user_state"], {**raw, **call(signatures["encode_user"], raw)})


def part_of(spec, raw: dict[str, np.ndarray], start: int, size: int, pad: bool = False) -> dict[str, np.ndarray]:
    """A part of one request's candidates, padded to the full size if asked."""
    part = dict(raw)
    for feature in spec.candidate_features():
        values = raw[feature.name][:, start : start + size]
        if pad and values.shape[1] < size:
            filler = "" if values.dtype == object else 0
            widths = [(0, 0), (0, size - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
            values = np.pad(values, widths, constant_values=filler)
        part[feature.name] = values
    part[request_example.CANDIDATE_COUNT] = np.clip(raw[request_example.CANDIDATE_COUNT] - start, 0, size)
    return part


def in_parts(spec, signatures, raw: dict[str, np.ndarray], size: int, pad: bool = False) -> dict[str, np.ndarray]:
    """What a client does with a list that is too long for one call."""
    n = int(raw[request_example.CANDIDATE_COUNT][0])
    known = {**raw, **call(signatures["encode_user"], raw)}
    parts = [part_of(spec, known, start, size, pad) for start in range(0, n, size)]
    summarized = [call(signatures["summarize_candidates"], part) for part in parts]
    names = [name for name in summarized[0] if name.startswith("summary_")]
    summary = {name: np.concatenate([part[name] for part in summarized], axis=1) for name in names}
    scored = [call(signatures["score_summary"], {**known, **part, **summary}) for part in summarized]
    return {name: np.concatenate([part[name] for part in scored], axis=1)[:, :n] for name in scored[0]}
