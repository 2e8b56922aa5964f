"""Raw inputs: a request's features as the plain tensors that clients send, padded behind, lengths beside them.

B requests, N candidates, U events, S members of a set. User and context features are [B]; sequences
`<sequence>_<feature>` [B, U] with `<sequence>_length` [B]; candidates [B, N], or [B, N, S] with "" for no member, with
`candidate_count` [B].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from transform.feature_types.tensors.sparse import masked
from transform.features import request_example
from transform.spec.ranking_spec import RankingSpec

Tensors = dict[str, tf.Tensor]
TensorSpecs = dict[str, tf.TensorSpec]


def input_specs(spec: RankingSpec) -> dict[str, TensorSpecs]:
    """Name, shape and dtype of every raw input, by group: `user`, `context`, `sequences` and `candidates`."""
    dtypes = request_example.input_dtypes(spec)
    groups: dict[str, TensorSpecs] = {"user": {}, "context": {}, "sequences": {}, "candidates": {}}
    for group, feature in spec.feature_groups():
        if group == "candidate":
            shape = [None] * feature.candidate_axes
            groups["candidates"][feature.name] = tf.TensorSpec(shape, dtypes[feature.name])
        else:
            groups[group][feature.name] = tf.TensorSpec([None], dtypes[feature.name])
    groups["candidates"][request_example.CANDIDATE_COUNT] = tf.TensorSpec([None], tf.int64)
    for sequence in spec.sequences:
        groups["sequences"][request_example.length_key(sequence.name)] = tf.TensorSpec([None], tf.int64)
        for key in sequence_keys(sequence):
            groups["sequences"][key] = tf.TensorSpec([None, None], dtypes[key])
    return groups


def sequence_keys(sequence: Any) -> list[str]:
    """The inputs [B, U] of a sequence: its features, then its feedback."""
    return [request_example.sequence_key(sequence.name, part) for part in (*sequence.features, *sequence.feedback)]


def to_sparse(spec: RankingSpec, raw: Tensors) -> dict[str, tf.SparseTensor]:
    """Raw inputs as the sparse tensors that parsing request examples would give. "" and 0 keep their places.

    Only that the members of sets have gaps between them, where there is no member: nobody reads their places.

    Args:
        spec: RankingSpec.
        raw: dict. Raw inputs, of some of the groups or of all.

    Returns:
        Sparse tensors by key.
    """
    sparse: dict[str, tf.SparseTensor] = {}
    counts, present = raw.get(request_example.CANDIDATE_COUNT), None
    for group, feature in spec.feature_groups():
        if feature.name not in raw:
            continue
        values = raw[feature.name]
        if group != "candidate":
            sparse[feature.name] = masked(values[:, None], tf.ones_like(values[:, None], tf.bool))
            continue
        if present is None:  # the others have the same shape
            present = tf.sequence_mask(counts, tf.shape(values)[1])
        sparse.update(feature.to_sparse(values, present))
    if counts is not None:
        sparse[request_example.CANDIDATE_COUNT] = masked(counts[:, None], tf.ones_like(counts[:, None], tf.bool))
    for sequence in spec.sequences:
        length_key = request_example.length_key(sequence.name)
        if length_key in raw:
            for key in sequence_keys(sequence):
                sparse[key] = masked(raw[key], tf.sequence_mask(raw[length_key], tf.shape(raw[key])[1]))
    return sparse


def raw_values(spec: RankingSpec, request: Mapping[str, list[Any]]) -> dict[str, np.ndarray]:
    """The raw inputs of one request, as a client would send them.

    No axis is empty and sets begin with "", so that a server may batch the request, see docs/serving.md.

    Args:
        spec: RankingSpec.
        request: mapping. A request example's lists by key, as `examples.decode` gives them.

    Returns:
        Arrays by name, B = 1.
    """
    specs = {name: tensor for group in input_specs(spec).values() for name, tensor in group.items()}
    n = request[request_example.CANDIDATE_COUNT][0]
    raw: dict[str, Any] = {request_example.CANDIDATE_COUNT: [n]}
    for group, feature in spec.feature_groups():
        values = feature.decode(request)
        if group == "candidate":
            raw[feature.name] = [feature.padded(values)]
        else:
            raw[feature.name] = values[:1] or [_missing(specs[feature.name])]
    for sequence in spec.sequences:
        for key in sequence_keys(sequence):
            events = list(request.get(key, ()))
            raw[request_example.length_key(sequence.name)] = [len(events)]
            raw[key] = [events or [_missing(specs[key])]]
    return {name: np.array(values, specs[name].dtype.as_numpy_dtype) for name, values in raw.items()}


def _missing(spec: tf.TensorSpec) -> Any:
    return "" if spec.dtype == tf.string else 0
