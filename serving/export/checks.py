"""Checks inside the served graph: invalid inputs are rejected with a clear message.

Each is an InvalidArgument, whoever serves the model, that names the input, what is expected and what was received.
All inputs together make a few small operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import tensorflow as tf

from serving.export.raw_inputs import Tensors, sequence_keys
from transform.features import request_example
from transform.spec.ranking_spec import RankingSpec


class Axis(NamedTuple):
    """An axis of an input."""

    name: str
    axis: int


class SameSize(NamedTuple):
    """A rule: an axis has the size of another one; `unit` says what both count."""

    axis: Axis
    other: Axis
    unit: str


def check_inputs(spec: RankingSpec, inputs: Tensors) -> Tensors:
    """Refuses a call whose inputs do not fit one another, or with more candidates than the spec allows.

    Args:
        spec: RankingSpec.
        inputs: dict. All inputs of a signature that takes raw inputs.

    Returns:
        The inputs, to be read once the checks have passed.
    """
    rules = [SameSize(Axis(name, 0), Axis(next(iter(inputs)), 0), "requests") for name in inputs]
    counted: dict[str, Axis] = {}
    lists = {request_example.CANDIDATE_COUNT: [feature.name for feature in spec.candidate_features()]}
    lists.update({request_example.length_key(sequence.name): sequence_keys(sequence) for sequence in spec.sequences})
    for count, (first, *others) in lists.items():
        if count in inputs:
            counted[count] = Axis(first, 1)
            unit = "candidates" if count == request_example.CANDIDATE_COUNT else "events"
            rules += [SameSize(Axis(name, 1), Axis(first, 1), unit) for name in others]
    return _check_counts(spec, check_sizes(inputs, rules), counted)


def check_sizes(inputs: Tensors, rules: Sequence[SameSize]) -> Tensors:
    """Refuses a call that breaks a rule on sizes.

    Args:
        inputs: dict. Tensors of known rank.
        rules: sequence of SameSize.

    Returns:
        The inputs, to be read once the check has passed.
    """
    rules = [rule for rule in rules if rule.axis != rule.other]
    if not rules:
        return inputs
    tensors = list(inputs.values())
    sizes = tf.concat([tf.shape(tensor) for tensor in tensors], axis=0)
    starts = dict(zip(inputs, accumulate((len(tensor.shape) for tensor in tensors), initial=0), strict=False))
    expected, received = (
        tf.gather(sizes, [starts[name] + axis for name, axis in axes])
        for axes in ([rule.other for rule in rules], [rule.axis for rule in rules])
    )
    texts = [
        f"{axis.name}: as many {unit} as in {other.name} are expected. In {other.name}, and received:"
        for axis, other, unit in rules
    ]
    return _after([_refuse(received != expected, texts, expected, received)], inputs)


def _check_counts(spec: RankingSpec, inputs: Tensors, counted: Mapping[str, Axis]) -> Tensors:
    """Refuses counts [B] below 0 or above the size of the axis that they count, and too many candidates."""
    if not counted:
        return inputs
    counts = tf.stack([inputs[name] for name in counted])
    sizes = tf.stack([tf.shape(inputs[name], tf.int64)[axis] for name, axis in counted.values()])
    least, most = tf.reduce_min(counts, axis=1), tf.reduce_max(counts, axis=1)
    texts = [
        f"{name}: a number from 0 to the size of {counts_what} is expected. That size, and received:"
        for name, (counts_what, _) in counted.items()
    ]
    checks = [_refuse((least < 0) | (most > sizes), texts, sizes, tf.where(least < 0, least, most))]
    if request_example.CANDIDATE_COUNT in counted:
        checks.append(_refuse_too_many(spec, inputs[request_example.CANDIDATE_COUNT]))
    return _after(checks, inputs)


def check_examples(spec: RankingSpec, parsed: dict[str, tf.SparseTensor]) -> dict[str, tf.SparseTensor]:
    """Refuses request examples whose lists do not fit one another, or with more candidates than the spec allows.

    Args:
        spec: RankingSpec.
        parsed: dict. What parsing request examples gave, by key.

    Returns:
        The same tensors, to be read once the checks have passed.
    """
    b = parsed[request_example.CANDIDATE_COUNT].dense_shape[0]
    counts = _sums(parsed[request_example.CANDIDATE_COUNT], b)  # 0 where it is missing
    rules: dict[str, tuple[str, tf.Tensor]] = {}
    for feature in spec.candidate_features():
        key = feature.name
        if not feature.single_valued:
            lengths = request_example.length_key(key)
            rules[key] = (f"the sum of {lengths}", _sums(parsed[lengths], b))
            key = lengths
        rules[key] = (request_example.CANDIDATE_COUNT, counts)
    for sequence in spec.sequences:
        first, *others = sequence_keys(sequence)
        rules.update({key: (f"values in {first}", _row_lengths(parsed[first], b)) for key in others})
    rows = {key: _row_lengths(parsed[key], b) for key in rules}
    # a request without anything behind all others, so that there is one
    expected = tf.pad(tf.stack([lengths for _, lengths in rules.values()]), [[0, 0], [0, 1]])
    received = tf.pad(tf.stack(list(rows.values())), [[0, 0], [0, 1]])
    texts = [f"{key}: as many values as {what} are expected. These, and received:" for key, (what, _) in rules.items()]
    furthest = tf.argmax(tf.abs(received - expected), axis=1)
    shown = [tf.gather(lengths, furthest, axis=1, batch_dims=1) for lengths in (expected, received)]
    checks = [_refuse(shown[0] != shown[1], texts, *shown), _refuse_too_many(spec, counts)]
    values = _after(checks, {key: tensor.values for key, tensor in parsed.items()})
    return {key: tf.SparseTensor(t.indices, values[key], t.dense_shape) for key, t in parsed.items()}


def _row_lengths(tensor: tf.SparseTensor, b: tf.Tensor) -> tf.Tensor:
    return tf.math.unsorted_segment_sum(tf.ones_like(tensor.indices[:, 0]), tensor.indices[:, 0], b)


def _sums(tensor: tf.SparseTensor, b: tf.Tensor) -> tf.Tensor:
    return tf.math.unsorted_segment_sum(tensor.values, tensor.indices[:, 0], b)


def _refuse_too_many(spec: RankingSpec, counts: tf.Tensor) -> tf.Operation:
    most = spec.serving.max_candidates
    text = (
        f"{request_example.CANDIDATE_COUNT}: at most {most} candidates a request are expected "
        "(serving.max_candidates). Score longer lists in parts. Received:"
    )
    largest = tf.reduce_max(counts)
    return _refuse(largest[None] > most, [text], largest[None])


def _refuse(wrong: tf.Tensor, texts: Sequence[str], *shown: tf.Tensor) -> tf.Operation:
    """Fails with the first text [R] whose place in `wrong` [R] is true, and the numbers [R] that stand there."""
    first = tf.argmax(tf.cast(wrong, tf.int32))
    data = [tf.gather(list(texts), first), *(tf.gather(numbers, first) for numbers in shown)]
    return tf.raw_ops.Assert(condition=tf.logical_not(tf.reduce_any(wrong)), data=data)


def _after(checks: Sequence[tf.Operation], tensors: Tensors) -> Tensors:
    """The tensors, which nobody reads before the checks have passed."""
    with tf.control_dependencies(checks):
        return {name: tf.identity(tensor) for name, tensor in tensors.items()}
