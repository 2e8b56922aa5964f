"""`preprocessing_fn` from the spec: vocabularies, scales and buckets, analysed by TensorFlow Transform.

No output mixes the user, context, sequence and candidate groups, so that a signature that knows only some of them
computes exactly their features. Analyses see the values that are there: missing ones neither enter a vocabulary nor
move a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import tensorflow as tf

from transform.feature_types.base import ValueFunction
from transform.features import request_example
from transform.features.model_inputs import analysed_together
from transform.spec.ranking_spec import RankingSpec

Inputs = Mapping[str, tf.SparseTensor]


def make_preprocessing_fn(spec: RankingSpec) -> Callable[[Inputs], dict[str, tf.SparseTensor]]:
    """The `preprocessing_fn` of a spec.

    Args:
        spec: RankingSpec.

    Returns:
        A function from sparse raw features by key (`examples.raw_feature_spec`) to sparse transformed features by
        key (`features.transformed_dtypes`), with request ids, labels, label weights and set lengths passed through.
    """

    def preprocessing_fn(inputs: Inputs) -> dict[str, tf.SparseTensor]:
        functions = _functions(spec, inputs)
        outputs: dict[str, tf.SparseTensor] = {}
        for group, feature in spec.feature_groups():
            named = zip(feature.columns(group), functions[feature.name], strict=True)
            of_columns = {column.name: partial(_map_values, function) for column, function in named}
            outputs.update({name: function(inputs[feature.name]) for name, function in of_columns.items()})
            for sequence in spec.sequences if group == "candidate" else ():
                if feature.name in sequence.features:
                    events = inputs[request_example.sequence_key(sequence.name, feature.name)]
                    for name, function in of_columns.items():
                        outputs[request_example.sequence_key(sequence.name, name)] = function(events)
        for sequence in spec.sequences:
            for task in sequence.feedback:
                key = request_example.sequence_key(sequence.name, task)
                outputs[key] = _map_values(_feedback_id, inputs[key])
        passed = [
            request_example.REQUEST_ID,
            request_example.CANDIDATE_COUNT,
            *request_example.target_dtypes(spec.task_names),
        ]
        for _, feature in spec.feature_groups():
            passed += [key for key in feature.example_dtypes() if key != feature.name]  # the lengths of sets
        outputs.update({key: inputs[key] for key in passed})
        return outputs

    return preprocessing_fn


def _functions(spec: RankingSpec, inputs: Inputs) -> dict[str, list[ValueFunction]]:
    """By feature, the functions that make its columns, in their order."""
    functions: dict[str, list[ValueFunction]] = {}
    for features in analysed_together(spec):
        names = [feature.name for feature in features]
        events = [
            inputs[request_example.sequence_key(sequence.name, name)].values
            for sequence in spec.sequences
            for name in names
            if name in sequence.features
        ]
        functions.update(features[0].preprocess(features, {name: inputs[name].values for name in names}, events))
    return functions


def _map_values(function: ValueFunction, tensor: tf.SparseTensor) -> tf.SparseTensor:
    """Applies a function to the values and keeps the places: a value of 0 or "" stays where it is."""
    return tf.SparseTensor(tensor.indices, function(tensor.values), tensor.dense_shape)


def _feedback_id(feedback: tf.Tensor) -> tf.Tensor:
    """0 unknown, 1 no, 2 yes."""
    return tf.where(tf.math.is_nan(feedback), tf.zeros_like(feedback, tf.int64), 1 + tf.cast(feedback > 0.5, tf.int64))
