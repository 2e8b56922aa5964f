"""The request example: its keys, its schema, and how a request becomes a `tf.train.Example`.

One example is one request of N candidates. User and context features hold one value; `<sequence>_<feature>` and
`<sequence>_<task>` (the feedback) hold one value an event, newest last; candidate features, `label_<task>` and
`weight_<task>` hold N values. A categorical set is flat, with `<name>_length` values a candidate. Missing is "" or NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from transform.feature_types.base import length_key as length_key
from transform.spec.ranking_spec import RankingSpec

CANDIDATE_COUNT = "candidate_count"
REQUEST_ID = "request_id"
REQUEST_TIME = "request_time"


def label_key(task: str) -> str:
    """The key of a task's labels: 0 or 1 per candidate."""
    return f"label_{task}"


def weight_key(task: str) -> str:
    """The key of a task's label weights: 0 where the label is missing or unobserved, else 1 or `request.weight`."""
    return f"weight_{task}"


def sequence_key(sequence: str, part: str) -> str:
    """The key of a sequence's feature, or of its feedback for a task."""
    return f"{sequence}_{part}"


def input_dtypes(spec: RankingSpec) -> dict[str, tf.DType]:
    """The dtype of each model input in a request example, by key; labels and identifiers are not among them."""
    dtypes: dict[str, tf.DType] = {}
    for _, feature in spec.feature_groups():
        dtypes.update({key: tf.as_dtype(dtype) for key, dtype in feature.example_dtypes().items()})
    for sequence in spec.sequences:
        for name in sequence.features:
            dtypes[sequence_key(sequence.name, name)] = dtypes[name]
        for task in sequence.feedback:
            dtypes[sequence_key(sequence.name, task)] = tf.float32
    dtypes[CANDIDATE_COUNT] = tf.int64
    return dtypes


def target_dtypes(tasks: Iterable[str]) -> dict[str, tf.DType]:
    """The dtype of each task's label and label weight, by key."""
    return {key(task): tf.float32 for task in tasks for key in (label_key, weight_key)}


def raw_feature_spec(spec: RankingSpec, targets: bool = True) -> dict[str, tf.io.VarLenFeature]:
    """How to parse request examples: every key is a plain variable-length feature, as TFMA needs it.

    Args:
        spec: RankingSpec.
        targets: bool. Whether labels and their weights are parsed too. Defaults to `True`.

    Returns:
        A parsing spec by key.
    """
    dtypes = {**input_dtypes(spec), **(target_dtypes(spec.task_names) if targets else {})}
    return {key: tf.io.VarLenFeature(dtype) for key, dtype in dtypes.items()}


def raw_schema(spec: RankingSpec) -> schema_pb2.Schema:
    """The TFX schema of request examples, with the domains that a broken log would violate."""
    types = {tf.string: schema_pb2.BYTES, tf.int64: schema_pb2.INT, tf.float32: schema_pb2.FLOAT}
    single = {feature.name for group, feature in spec.feature_groups() if group != "candidate"}
    sets = {feature.name for _, feature in spec.feature_groups() if not feature.single_valued}
    sequence_keys = {
        sequence_key(sequence.name, part)
        for sequence in spec.sequences
        for part in (*sequence.features, *sequence.feedback)
    }
    schema = schema_pb2.Schema()
    identifiers = {REQUEST_ID: tf.string, REQUEST_TIME: tf.int64}
    for key, dtype in {**input_dtypes(spec), **target_dtypes(spec.task_names), **identifiers}.items():
        feature = schema.feature.add(name=key, type=types[dtype])
        if key in single or key in identifiers or key == CANDIDATE_COUNT:
            feature.presence.min_fraction = 1.0
            feature.value_count.min = feature.value_count.max = 1
        elif key not in sequence_keys and key not in sets:
            feature.presence.min_fraction = 1.0
            feature.value_count.min = 1
    weights = {weight_key(task) for task in spec.task_names} if spec.request.weight else set()
    for key in target_dtypes(spec.task_names):
        domain = next(feature for feature in schema.feature if feature.name == key).float_domain
        domain.min = 0.0
        if key not in weights:
            domain.max = 1.0
    next(feature for feature in schema.feature if feature.name == CANDIDATE_COUNT).int_domain.min = 1
    return schema


def encode(values: Mapping[str, list[Any]]) -> tf.train.Example:
    """A request example from lists by key: str becomes bytes, int becomes int64, float stays."""
    example = tf.train.Example()
    for key, column in values.items():
        feature = example.features.feature[key]
        if not column:
            feature.SetInParent()
        elif isinstance(column[0], str):
            feature.bytes_list.value.extend([value.encode() for value in column])
        elif isinstance(column[0], int):
            feature.int64_list.value.extend(column)
        else:
            feature.float_list.value.extend(column)
    return example


def decode(serialized: bytes) -> dict[str, list[Any]]:
    """The lists by key of a serialized request example: the opposite of `encode`."""
    example = tf.train.Example.FromString(serialized)
    return dict(_columns(example))


def _columns(example: tf.train.Example) -> Iterator[tuple[str, list[Any]]]:
    for key, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        yield key, [value.decode() for value in values] if kind == "bytes_list" else values
