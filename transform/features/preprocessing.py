"""`preprocessing_fn` from the spec: vocabularies, scales and buckets, analysed by TensorFlow Transform.

No output mixes the user, context, sequence and candidate groups, so that a signature that knows only some of them
computes exactly their features. Analyses see the values that are there: missing ones neither enter a vocabulary nor
move a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import tensorflow as tf
import tensorflow_transform as tft

from transform.features import request_example
from transform.features.model_inputs import hash_buckets, oov_buckets, vocabularies
from transform.spec.aggregates import AggregateFeature
from transform.spec.data_sections import Feature
from transform.spec.ranking_spec import RankingSpec

QUANTILE_ERROR = 0.001
PERIODS_MS = {"hour": 3_600_000, "day": 86_400_000, "week": 604_800_000}
FIRST_MONDAY_MS = 4 * PERIODS_MS["day"]  # 1 January 1970 was a Thursday
SMALLEST_RATE = 1e-6  # log-odds of a rate without a positive are finite
Inputs = Mapping[str, tf.SparseTensor]
Apply = Callable[[tf.SparseTensor], tf.SparseTensor]


def make_preprocessing_fn(spec: RankingSpec) -> Callable[[Inputs], dict[str, tf.SparseTensor]]:
    """The `preprocessing_fn` of a spec.

    Args:
        spec: RankingSpec.

    Returns:
        A function from sparse raw features by key (`examples.raw_feature_spec`) to sparse transformed features by
        key (`features.transformed_dtypes`), with request ids, labels, masks and set lengths passed through.
    """

    def preprocessing_fn(inputs: Inputs) -> dict[str, tf.SparseTensor]:
        apply = _vocabulary_functions(spec, inputs)
        counting = _counting_functions(spec, inputs)
        outputs: dict[str, tf.SparseTensor] = {}
        for group, feature in spec.feature_groups():
            functions = counting.get(feature.name) or _functions(feature, inputs, apply)
            outputs.update({name: function(inputs[feature.name]) for name, function in functions.items()})
            for sequence in spec.sequences if group == "candidate" else ():
                if feature.name in sequence.features:
                    events = inputs[request_example.sequence_key(sequence.name, feature.name)]
                    for name, function in functions.items():
                        outputs[request_example.sequence_key(sequence.name, name)] = function(events)
        for sequence in spec.sequences:
            for task in sequence.feedback:
                key = request_example.sequence_key(sequence.name, task)
                outputs[key] = _map_values(_feedback_id, inputs[key])
        passed = [request_example.REQUEST_ID, request_example.CANDIDATE_COUNT, *request_example.target_dtypes(spec)]
        passed += [request_example.length_key(f.name) for _, f in spec.feature_groups() if f.type == "categorical_set"]
        outputs.update({key: inputs[key] for key in passed})
        return outputs

    return preprocessing_fn


def _functions(feature: Feature, inputs: Inputs, apply: Mapping[str, Apply]) -> dict[str, Apply]:
    """The functions that make a feature's columns, by column name."""
    if feature.type == "time":
        return dict(zip(feature.column_names, _cyclic_functions(feature), strict=True))
    if feature.type == "numeric":
        return {feature.name: _numeric_function(feature, inputs[feature.name])}
    return {feature.name: apply[feature.vocabulary_name]}


def _map_values(function: Callable[[tf.Tensor], tf.Tensor], tensor: tf.SparseTensor) -> tf.SparseTensor:
    """Applies a function to the values and keeps the places: a value of 0 or "" stays where it is."""
    return tf.SparseTensor(tensor.indices, function(tensor.values), tensor.dense_shape)


def _feedback_id(feedback: tf.Tensor) -> tf.Tensor:
    """0 unknown, 1 no, 2 yes."""
    return tf.where(tf.math.is_nan(feedback), tf.zeros_like(feedback, tf.int64), 1 + tf.cast(feedback > 0.5, tf.int64))


# === Categorical ===


def _vocabulary_functions(spec: RankingSpec, inputs: Inputs) -> dict[str, Apply]:
    """One function from values to ids for every vocabulary, analysed on all features and sequences that share it."""
    functions: dict[str, Apply] = {}
    for name, shared in vocabularies(spec).items():
        if buckets := hash_buckets(shared):
            functions[name] = _hash(buckets)
            continue
        keys = [feature.name for feature in shared]
        keys += [
            request_example.sequence_key(sequence.name, feature.name)
            for sequence in spec.sequences
            for feature in shared
            if feature.name in sequence.features
        ]
        settings = [feature.vocabulary for feature in shared if feature.vocabulary]
        vocabulary = tft.vocabulary(
            tf.concat([inputs[key].values for key in keys], axis=0),
            top_k=next((setting.top_k for setting in settings if setting.top_k), None),
            frequency_threshold=next((setting.min_frequency for setting in settings if setting.min_frequency), None),
            vocab_filename=name,
        )
        functions[name] = _lookup(vocabulary, oov_buckets(shared))
    return functions


def _lookup(vocabulary: object, oov: int) -> Apply:
    def ids(values: tf.Tensor) -> tf.Tensor:
        found = tft.apply_vocabulary(values, vocabulary, default_value=-1, num_oov_buckets=oov)
        return tf.where(values == "", tf.zeros_like(found), found + 1)

    return lambda tensor: _map_values(ids, tensor)


def _hash(buckets: int) -> Apply:
    def ids(values: tf.Tensor) -> tf.Tensor:
        hashed = 1 + tf.strings.to_hash_bucket_fast(values, buckets)
        return tf.where(values == "", tf.zeros_like(hashed), hashed)

    return lambda tensor: _map_values(ids, tensor)


# === Times ===


def _cyclic_functions(feature: Feature) -> list[Apply]:
    """Sine and cosine of the place in each period, in the order of `column_names`; both 0 for a missing time."""
    return [
        partial(_map_values, partial(_cyclic, feature.utc_offset, period, function))
        for period in feature.periods
        for function in (tf.sin, tf.cos)
    ]


def _cyclic(utc_offset: float, period: str, function: Callable[[tf.Tensor], tf.Tensor], times: tf.Tensor) -> tf.Tensor:
    local = times + round(utc_offset * PERIODS_MS["hour"]) - FIRST_MONDAY_MS
    # The remainder of whole numbers: a float32 would round a time to minutes.
    place = tf.cast(tf.math.floormod(local, PERIODS_MS[period]), tf.float32) / PERIODS_MS[period]
    return tf.where(times < 0, tf.zeros_like(place), function(2 * math.pi * place))


# === Numeric ===


def _numeric_function(feature: Feature, tensor: tf.SparseTensor) -> Apply:
    """The function of a numeric feature, analysed on its own values that are not missing."""
    if feature.transform == "identity":
        return lambda x: _map_values(_zero_for_missing, x)
    present = tf.boolean_mask(tensor.values, ~tf.math.is_nan(tensor.values))
    if feature.transform == "quantiles":
        return _buckets(tft.quantiles(present, feature.buckets, QUANTILE_ERROR)[0])
    scale = _SCALES[feature.transform]
    wide = scale(present)
    return _z_score(scale, tft.mean(wide), tf.sqrt(tft.var(wide)))


def _counting_functions(spec: RankingSpec, inputs: Inputs) -> dict[str, dict[str, Apply]]:
    """The functions of counting features, by feature and by the column that each gives.

    There are many, and analyses of its own for each would take minutes: those of one group, task and number of buckets
    are the columns of one matrix. They have equally many values, and their rates are missing in the same rows.
    """
    functions: dict[str, dict[str, Apply]] = {}
    shared: dict[tuple[str, str, int], list[AggregateFeature]] = {}
    for group, feature in spec.feature_groups():
        if isinstance(feature, AggregateFeature):
            shared.setdefault((group, feature.task, feature.buckets), []).append(feature)
    for (_, _, buckets), features in shared.items():
        matrix = tf.stack([inputs[feature.name].values for feature in features], axis=1)
        present = tf.boolean_mask(matrix, ~tf.reduce_any(tf.math.is_nan(matrix), axis=1))
        scales = [_SCALES[feature.transforms[0]] for feature in features]
        wide = tf.stack([scale(present[:, place]) for place, scale in enumerate(scales)], axis=1)
        means = tf.unstack(tft.mean(wide, reduce_instance_dims=False))
        deviations = tf.unstack(tf.sqrt(tft.var(wide, reduce_instance_dims=False)))
        boundaries = tf.unstack(tft.quantiles(present, buckets, QUANTILE_ERROR, reduce_instance_dims=False))
        for place, feature in enumerate(features):
            both = _z_score(scales[place], means[place], deviations[place]), _buckets(boundaries[place])
            functions[feature.name] = dict(zip(feature.column_names, both, strict=True))
    return functions


def _buckets(boundaries: tf.Tensor) -> Apply:
    """Values to buckets from 1 on, a boundary to the one above it; a missing value has the bucket 0."""

    def bucket(values: tf.Tensor) -> tf.Tensor:
        known = 1 + tf.reduce_sum(tf.cast(values[:, None] >= boundaries, tf.int64), axis=1)
        return tf.where(tf.math.is_nan(values), tf.zeros_like(known), known)

    return lambda x: _map_values(bucket, x)


def _z_score(scale: Callable[[tf.Tensor], tf.Tensor], mean: tf.Tensor, deviation: tf.Tensor) -> Apply:
    """Scaled values in standard deviations from their mean; a missing value is the mean."""

    def z_score(values: tf.Tensor) -> tf.Tensor:
        z = tf.math.divide_no_nan(scale(values) - mean, deviation)
        return _zero_for_missing(tf.cast(z, tf.float32))

    return lambda x: _map_values(z_score, x)


# All in double precision: Beam adds and cuts batches in no fixed order, and TensorFlow's float32 logarithm depends on a
# value's place in its batch. Rounded at the end, equal data give equal features in every run.


def _plain(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, tf.float64)


def _signed_log(values: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(values, tf.float64)
    return tf.sign(wide) * tf.math.log1p(tf.abs(wide))


def _log_odds(rates: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(rates, tf.float64)
    inside = tf.clip_by_value(wide, SMALLEST_RATE, 1 - SMALLEST_RATE)
    return tf.where(tf.math.is_nan(wide), wide, tf.math.log(inside) - tf.math.log1p(-inside))


_SCALES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {"z": _plain, "log_z": _signed_log, "logit_z": _log_odds}


def _zero_for_missing(values: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_nan(values), tf.zeros_like(values), values)
