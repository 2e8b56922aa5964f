"""The signatures of an exported ranking model, the preprocessing graph inside.

Requests are batched by their first axis; lists are padded behind to the longest of the batch, with their lengths
beside them. Probabilities, scores and masks of padded candidates are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer.models.base import RankingModel, empty_batch
from transform import examples
from transform.features import Batch, to_batch
from transform.spec import RankingSpec

SERVING_DEFAULT = "serving_default"
RANK = "rank"
ENCODE_CONTEXT = "encode_context"
RANK_WITH_CONTEXT = "rank_with_context"
TRANSFORM_FEATURES = "transform_features"

SCORE = "score"
CANDIDATE_MASK = "candidate_mask"
CACHE_PREFIX = "cache_"

Tensors = dict[str, tf.Tensor]


class RankingSignatures(tf.Module):
    """Model and preprocessing as the functions that a server offers.

    Args:
        spec: RankingSpec.
        model: RankingModel. With its variables created.
        preprocess: the Keras layer that TensorFlow Transform makes of its graph.
    """

    def __init__(self, spec: RankingSpec, model: RankingModel, preprocess: Callable[[Any], Any]):
        super().__init__()
        self._spec = spec
        self._request, self._sequences, self._candidates = _raw_inputs(spec)
        # Attributes of the module, so that the SavedModel holds their variables and tables.
        self.model = model
        self.preprocess = preprocess
        # TensorFlow's own variables inside Keras's: without them a TF1 session, and so TF Serving, restores copies and
        # leaves those that the functions read uninitialised.
        self.tensorflow_variables = [getattr(variable, "_value", variable) for variable in model.variables]

    def all(self) -> dict[str, Any]:
        """Every signature by name, as concrete functions."""
        serialized = {"examples": tf.TensorSpec([None], tf.string)}
        users = {**self._request["user"], **self._sequences}
        candidates = {**self._request["context"], **self._candidates}
        encode = _concrete(self._encode_context, users)
        cache = {
            name: tf.TensorSpec([None, *shape[1:]], encode.structured_outputs[name].dtype)
            for name, shape in self._cache_shapes().items()
        }
        return {
            SERVING_DEFAULT: _concrete(self._serve_examples, serialized),
            RANK: _concrete(self._rank, {**users, **candidates}),
            ENCODE_CONTEXT: encode,
            RANK_WITH_CONTEXT: _concrete(self._rank_with_context, {**cache, **candidates}),
            TRANSFORM_FEATURES: _concrete(self._transform_features, serialized),
        }

    # === Signatures ===

    def _serve_examples(self, serialized: Tensors) -> Tensors:
        return self._outputs(self._batch_of_examples(serialized["examples"]))

    def _rank(self, raw: Tensors) -> Tensors:
        return self._outputs(self._batch_of_raw(raw))

    def _encode_context(self, raw: Tensors) -> Tensors:
        batch = self._batch_of_raw(raw)
        cache = self.model.encode_context(batch["user"], batch["sequences"], training=False)
        return {CACHE_PREFIX + name: tensor for name, tensor in cache.items()}

    def _rank_with_context(self, inputs: Tensors) -> Tensors:
        cache = {name.removeprefix(CACHE_PREFIX): inputs[name] for name in inputs if name.startswith(CACHE_PREFIX)}
        batch = self._batch_of_raw({name: inputs[name] for name in inputs if not name.startswith(CACHE_PREFIX)})
        logits = self.model.score_candidates(cache, batch["context"], batch["candidates"], training=False)
        return self._probabilities(logits, batch["candidates"]["mask"])

    def _transform_features(self, serialized: Tensors) -> Tensors:
        batch = self._batch_of_examples(serialized["examples"])
        outputs = {**batch["user"], **batch["context"]}
        for sequence, parts in batch["sequences"].items():
            outputs.update({examples.sequence_key(sequence, part): values for part, values in parts.items()})
        outputs.update({name: values for name, values in batch["candidates"].items() if name != "mask"})
        return {**outputs, CANDIDATE_MASK: batch["candidates"]["mask"]}

    # === Steps ===

    def _batch_of_examples(self, serialized: tf.Tensor) -> Batch:
        raw = tf.io.parse_example(serialized, examples.raw_feature_spec(self._spec, targets=False))
        return self._preprocessed(raw)

    def _batch_of_raw(self, raw: Tensors) -> Batch:
        return self._preprocessed(_to_sparse(self._spec, raw))

    def _preprocessed(self, raw: dict[str, tf.SparseTensor]) -> Batch:
        # The layer leaves out what its inputs don't suffice for; a group that is missing fails below, at export.
        return to_batch(self._spec, self.preprocess(raw))

    def _outputs(self, batch: Batch) -> Tensors:
        return self._probabilities(self.model(batch, training=False), batch["candidates"]["mask"])

    def _probabilities(self, logits: tf.Tensor, mask: tf.Tensor) -> Tensors:
        """The tasks' probabilities and their product of powers, 0 where padded."""
        mask = tf.cast(mask, tf.float32)
        log_probabilities = tf.math.log_sigmoid(tf.cast(logits, tf.float32))
        powers = [self._spec.score_powers.get(task, 0.0) for task in self._spec.task_names]
        score = tf.exp(tf.linalg.matvec(log_probabilities, tf.constant(powers, tf.float32)))
        outputs = {task: tf.exp(log_probabilities[..., k]) * mask for k, task in enumerate(self._spec.task_names)}
        return {**outputs, SCORE: score * mask, CANDIDATE_MASK: mask}

    def _cache_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shapes of the cache's tensors; axes that hold events vary."""
        batch = empty_batch(self.model.inputs_spec)
        one = self.model.encode_context(batch["user"], batch["sequences"])
        two = self.model.encode_context(batch["user"], _twice(batch["sequences"]))
        return {
            CACHE_PREFIX + name: tuple(
                size if size == other else None for size, other in zip(one[name].shape, two[name].shape, strict=True)
            )
            for name in one
        }


def _twice(sequences: dict[str, dict[str, Any]]) -> dict[str, dict[str, tf.Tensor]]:
    """Every sequence with each event twice."""
    return {
        name: {part: tf.repeat(values, 2, axis=1) for part, values in parts.items()}
        for name, parts in sequences.items()
    }


def _concrete(function: Callable[[Tensors], Tensors], inputs: dict[str, tf.TensorSpec]) -> Any:
    """A signature whose inputs and outputs are named tensors."""
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()}
    return tf.function(lambda **tensors: function(tensors)).get_concrete_function(**specs)


def _raw_inputs(spec: RankingSpec) -> tuple[dict[str, dict], dict[str, tf.TensorSpec], dict[str, tf.TensorSpec]]:
    """The raw inputs: user and context [B], sequences [B, U] with lengths, candidates [B, N] with their count."""
    dtypes = examples.input_dtypes(spec)
    request: dict[str, dict] = {"user": {}, "context": {}}
    candidates = {examples.CANDIDATE_COUNT: tf.TensorSpec([None], tf.int64)}
    for group, feature in spec.feature_groups():
        if group == "candidate":
            axes = 3 if feature.type == "categorical_set" else 2
            candidates[feature.name] = tf.TensorSpec([None] * axes, dtypes[feature.name])
        else:
            request[group][feature.name] = tf.TensorSpec([None], dtypes[feature.name])
    sequences = {}
    for sequence in spec.sequences:
        sequences[examples.length_key(sequence.name)] = tf.TensorSpec([None], tf.int64)
        for part in (*sequence.features, *sequence.feedback):
            key = examples.sequence_key(sequence.name, part)
            sequences[key] = tf.TensorSpec([None, None], dtypes[key])
    return request, sequences, candidates


def _to_sparse(spec: RankingSpec, raw: Tensors) -> dict[str, tf.SparseTensor]:
    """Raw tensors as the sparse tensors that parsing request examples would give. "" and 0 keep their places."""
    sparse: dict[str, tf.SparseTensor] = {}
    counts = raw.get(examples.CANDIDATE_COUNT)
    for group, feature in spec.feature_groups():
        if feature.name not in raw:
            continue
        values = raw[feature.name]
        if group != "candidate":
            sparse[feature.name] = _masked(values[:, None], tf.ones_like(values[:, None], tf.bool))
            continue
        present = tf.sequence_mask(counts, tf.shape(values)[1])
        if feature.type == "categorical_set":
            given = tf.logical_and(values != "", present[..., None])
            sparse[feature.name] = tf.ragged.boolean_mask(values, given).merge_dims(1, 2).to_sparse()
            lengths = tf.reduce_sum(tf.cast(given, tf.int64), axis=-1)
            sparse[examples.length_key(feature.name)] = _masked(lengths, present)
        else:
            sparse[feature.name] = _masked(values, present)
    if counts is not None:
        sparse[examples.CANDIDATE_COUNT] = _masked(counts[:, None], tf.ones_like(counts[:, None], tf.bool))
    for sequence in spec.sequences:
        length_key = examples.length_key(sequence.name)
        if length_key in raw:
            for part in (*sequence.features, *sequence.feedback):
                key = examples.sequence_key(sequence.name, part)
                sparse[key] = _masked(raw[key], tf.sequence_mask(raw[length_key], tf.shape(raw[key])[1]))
    return sparse


def _masked(values: tf.Tensor, mask: tf.Tensor) -> tf.SparseTensor:
    return tf.ragged.boolean_mask(values, mask).to_sparse()
