"""Transformed features as dense, masked batches of model inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import tensorflow as tf

from transform.features import request_example
from transform.features.model_inputs import Column, columns
from transform.spec.data_sections import Sequence
from transform.spec.ranking_spec import RankingSpec

Tensor: TypeAlias = Any  # a ragged or sparse tensor
Batch: TypeAlias = dict[str, dict]


# === Transformed examples ===


def transformed_dtypes(spec: RankingSpec) -> dict[str, tf.DType]:
    """The dtype of each transformed model input, by key."""
    dtypes = {_key(spec, column): tf.float32 if column.kind == "dense" else tf.int64 for column in columns(spec)}
    dtypes.update(
        {request_example.length_key(column.name): tf.int64 for column in columns(spec) if column.kind == "ids"}
    )
    return {**dtypes, request_example.CANDIDATE_COUNT: tf.int64}


def parse_transformed(spec: RankingSpec, serialized: tf.Tensor) -> dict[str, tf.RaggedTensor]:
    """Parses a batch of transformed examples, labels and their weights included.

    Args:
        spec: RankingSpec.
        serialized: string Tensor [B].

    Returns:
        Ragged tensors by key.
    """
    dtypes = {**transformed_dtypes(spec), **request_example.target_dtypes(spec)}
    parsing = {key: tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64) for key, dtype in dtypes.items()}
    return tf.io.parse_example(serialized, parsing)


def to_batch(spec: RankingSpec, tensors: Mapping[str, Tensor]) -> Batch:
    """The dense, masked batch of model inputs.

    Groups whose tensors are absent are left out, so that a context can be encoded without candidates.

    Args:
        spec: RankingSpec.
        tensors: mapping. Ragged or sparse transformed features by key.

    Returns:
        `user` and `context`: [B] by name; `sequences`: by sequence, [B, U] by name and a boolean `mask` [B, U];
        `candidates`: [B, N] by name ([B, N, S] for sets of ids) and a boolean `mask` [B, N].
    """
    ragged = {key: _ragged(tensor) for key, tensor in tensors.items()}
    batch: Batch = {}
    by_group: dict[str, list[Column]] = {"user": [], "context": [], "candidate": []}
    for column in columns(spec):
        by_group.setdefault(column.group, []).append(column)
    for group in ("user", "context"):
        if all(_key(spec, column) in ragged for column in by_group[group]):
            batch[group] = {c.name: _first(ragged[_key(spec, c)]) for c in by_group[group]}
    sequences = {
        sequence.name: _sequence(spec, sequence, by_group[sequence.name], ragged)
        for sequence in spec.sequences
        if all(_key(spec, column) in ragged for column in by_group[sequence.name])
    }
    if len(sequences) == len(spec.sequences):
        batch["sequences"] = sequences
    if request_example.CANDIDATE_COUNT in ragged:
        counts = _first(ragged[request_example.CANDIDATE_COUNT])
        batch["candidates"] = {c.name: _candidates(c, ragged, counts) for c in by_group["candidate"]}
        batch["candidates"]["mask"] = tf.sequence_mask(counts)
    return batch


def to_targets(
    spec: RankingSpec, tensors: Mapping[str, tf.RaggedTensor], tasks: tuple[str, ...] | None = None
) -> dict[str, tf.Tensor]:
    """Labels and label weights.

    Args:
        spec: RankingSpec.
        tensors: mapping. What `parse_transformed` returns.
        tasks: tuple of str, optional. The K tasks. Defaults to all of the spec.

    Returns:
        `labels` and `weights`: float [B, N, K]; the weight is 0 for padded candidates and for labels that are missing.
    """
    keys = {"labels": request_example.label_key, "weights": request_example.weight_key}
    return {
        name: tf.stack([tensors[key(task)].to_tensor() for task in tasks or spec.task_names], axis=-1)
        for name, key in keys.items()
    }


def _key(spec: RankingSpec, column: Column) -> str:
    if column.group in ("user", "context", "candidate"):
        return column.name
    return request_example.sequence_key(column.group, column.name)


def _ragged(tensor: Tensor) -> tf.RaggedTensor:
    if not isinstance(tensor, tf.SparseTensor):
        return tensor
    # `from_sparse` looks whether rows have gaps, which no parsed example has: a dozen operations for each tensor
    rows, nrows = tensor.indices[:, 0], tensor.dense_shape[0]
    return tf.RaggedTensor.from_value_rowids(tensor.values, rows, nrows, validate=False)


def _first(ragged: tf.RaggedTensor) -> tf.Tensor:
    """The one value of each row; a row without a value gets 0, which is missing."""
    return ragged.to_tensor(shape=[None, 1])[:, 0]


def _sequence(
    spec: RankingSpec, sequence: Sequence, group: list[Column], ragged: Mapping[str, tf.RaggedTensor]
) -> dict[str, tf.Tensor]:
    """The newest events of a sequence, padded behind."""
    newest = {column.name: ragged[_key(spec, column)][:, -sequence.length :] for column in group}
    lengths = newest[group[0].name].row_lengths()
    return {**{name: values.to_tensor() for name, values in newest.items()}, "mask": tf.sequence_mask(lengths)}


def _candidates(column: Column, ragged: Mapping[str, tf.RaggedTensor], counts: tf.Tensor) -> tf.Tensor:
    values = ragged[column.name]
    if column.kind == "ids":
        lengths = ragged[request_example.length_key(column.name)].flat_values
        # not validated: requests are checked where they come in, and files are the pipeline's own
        values = tf.RaggedTensor.from_row_lengths(values.flat_values, lengths, validate=False)
        values = tf.RaggedTensor.from_row_lengths(values, counts, validate=False)
    return values.to_tensor()
