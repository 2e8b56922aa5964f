"""The signatures of an exported ranking model, the preprocessing graph inside.

Requests are batched by their first axis; lists are padded behind to the longest of the batch, with their lengths
beside them. Probabilities, scores and masks of padded candidates are 0. docs/serving.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from serving.export.checks import Axis, SameSize, check_examples, check_inputs, check_sizes
from serving.export.raw_inputs import Tensors, TensorSpecs, input_specs, to_sparse
from serving.export.wire_format import pack_summary, pack_user_state, unpack_summary, unpack_user_state
from trainer.models.base import RankingModel, empty_batch
from trainer.models.setwise import score_summary, summarize_candidates
from transform.features import request_example
from transform.features.dataset import Batch, to_batch
from transform.features.transform_graph import TransformGraph
from transform.spec.ranking_spec import RankingSpec

SERVING_DEFAULT = "serving_default"
RANK = "rank"
ENCODE_USER = "encode_user"
RANK_WITH_USER_STATE = "rank_with_user_state"
SUMMARIZE_CANDIDATES = "summarize_candidates"
SCORE_SUMMARY = "score_summary"
TRANSFORM_FEATURES = "transform_features"

SCORE = "score"
CANDIDATE_MASK = "candidate_mask"
CACHE_PREFIX = "cache_"
SUMMARY_PREFIX = "summary_"
STATE_PREFIX = "state_"


class RankingSignatures(tf.Module):
    """Model and preprocessing as the functions that a server offers.

    Args:
        spec: RankingSpec.
        model: RankingModel. With its variables created.
        preprocess: TransformGraph.
    """

    def __init__(self, spec: RankingSpec, model: RankingModel, preprocess: TransformGraph):
        super().__init__()
        self._spec = spec
        # Attributes of the module, so that the SavedModel holds their variables and tables.
        self.model = model
        self.tables = preprocess.tables
        self._preprocess = preprocess
        # TensorFlow's own variables inside Keras's: without them a TF1 session, and so TF Serving, restores copies and
        # leaves those that the functions read uninitialised.
        self.tensorflow_variables = [getattr(variable, "_value", variable) for variable in model.variables]
        self._learn_what_is_carried()

    def all(self) -> dict[str, Any]:
        """Every signature by name, as concrete functions, each after those whose outputs it takes."""
        serialized = {"examples": tf.TensorSpec([None], tf.string)}
        raw = input_specs(self._spec)
        users, context = {**raw["user"], **raw["sequences"]}, raw["context"]
        candidates = {**context, **raw["candidates"]}
        cache, states, summary = self._cache_specs, self._state_specs, self._summary_specs
        mask = {CANDIDATE_MASK: tf.TensorSpec([None, None], tf.float32)}
        return {
            SERVING_DEFAULT: _concrete(self._serve_examples, serialized),
            TRANSFORM_FEATURES: _concrete(self._transform_features, serialized),
            RANK: _concrete(self._rank, {**users, **candidates}),
            ENCODE_USER: _concrete(self._encode_user, users),
            RANK_WITH_USER_STATE: _concrete(self._rank_with_user_state, {**cache, **candidates}),
            SUMMARIZE_CANDIDATES: _concrete(self._summarize_candidates, {**cache, **candidates}),
            SCORE_SUMMARY: _concrete(self._score_summary, {**cache, **context, **summary, **states, **mask}),
        }

    # === Signatures ===

    def _serve_examples(self, serialized: Tensors) -> Tensors:
        return self._outputs(self._batch_of_examples(serialized["examples"]))

    def _rank(self, raw: Tensors) -> Tensors:
        return self._outputs(self._batch_of_raw(check_inputs(self._spec, raw)))

    def _encode_user(self, raw: Tensors) -> Tensors:
        batch = self._batch_of_raw(check_inputs(self._spec, raw))
        sequences = {name: _at_least_one(parts) for name, parts in batch["sequences"].items()}
        cache = self.model.encode_user(batch["user"], sequences, training=False)
        return _with_prefix(
            CACHE_PREFIX, pack_user_state(cache, self._spec.serving.cache_dtype, self.model.full_precision_state)
        )

    def _rank_with_user_state(self, inputs: Tensors) -> Tensors:
        cache, batch = self._with_user_state(check_inputs(self._spec, inputs))
        logits = self.model.score_candidates(cache, batch["context"], batch["candidates"], training=False)
        return self._probabilities(logits, batch["candidates"]["mask"])

    def _summarize_candidates(self, inputs: Tensors) -> Tensors:
        cache, batch = self._with_user_state(check_inputs(self._spec, inputs))
        candidates = batch["candidates"]
        states, summary = summarize_candidates(self.model, cache, batch["context"], candidates)
        mask = {CANDIDATE_MASK: tf.cast(candidates["mask"], tf.float32)}
        return {**_with_prefix(STATE_PREFIX, states), **_with_prefix(SUMMARY_PREFIX, pack_summary(summary)), **mask}

    def _score_summary(self, inputs: Tensors) -> Tensors:
        rules = [SameSize(Axis(name, 0), Axis(CANDIDATE_MASK, 0), "requests") for name in inputs]
        rules += [SameSize(Axis(name, 1), Axis(CANDIDATE_MASK, 1), "candidates") for name in self._state_specs]
        first = next(iter(self._summary_specs), "")
        rules += [SameSize(Axis(name, 1), Axis(first, 1), "parts") for name in self._summary_specs]
        inputs = check_sizes(inputs, rules)
        cache, batch = self._with_user_state(inputs)
        summary = unpack_summary(_without_prefix(SUMMARY_PREFIX, inputs, self._summary_specs), self._nothing)
        states = _without_prefix(STATE_PREFIX, inputs, self._state_specs)
        logits = score_summary(self.model, cache, batch["context"], summary, states)
        return self._probabilities(logits, inputs[CANDIDATE_MASK])

    def _transform_features(self, serialized: Tensors) -> Tensors:
        batch = self._batch_of_examples(serialized["examples"])
        outputs = {**batch["user"], **batch["context"]}
        for sequence, parts in batch["sequences"].items():
            outputs.update({request_example.sequence_key(sequence, part): values for part, values in parts.items()})
        outputs.update({name: values for name, values in batch["candidates"].items() if name != "mask"})
        return {**outputs, CANDIDATE_MASK: batch["candidates"]["mask"]}

    # === Steps ===

    def _batch_of_examples(self, serialized: tf.Tensor) -> Batch:
        raw = tf.io.parse_example(serialized, request_example.raw_feature_spec(self._spec, targets=False))
        return self._preprocessed(check_examples(self._spec, raw))

    def _batch_of_raw(self, raw: Tensors) -> Batch:
        return self._preprocessed(to_sparse(self._spec, raw))

    def _preprocessed(self, raw: dict[str, tf.SparseTensor]) -> Batch:
        # What the inputs don't suffice for is left out; a group that is missing fails below, at export.
        return to_batch(self.model.inputs_spec, self._preprocess(raw) if raw else {})

    def _with_user_state(self, inputs: Tensors) -> tuple[Tensors, Batch]:
        """The cache, and the batch of the raw inputs beside it."""
        cache = _without_prefix(CACHE_PREFIX, inputs, self._cache_specs)
        known = {name for group in input_specs(self._spec).values() for name in group}
        batch = self._batch_of_raw({name: tensor for name, tensor in inputs.items() if name in known})
        return unpack_user_state(cache, self._masks), batch

    def _outputs(self, batch: Batch) -> Tensors:
        return self._probabilities(self.model(batch, training=False), batch["candidates"]["mask"])

    def _probabilities(self, logits: tf.Tensor, mask: tf.Tensor) -> Tensors:
        """The tasks' probabilities and their product of powers, 0 where padded."""
        mask = tf.cast(mask, tf.float32)
        log_probabilities = tf.math.log_sigmoid(tf.cast(logits, tf.float32))
        powers = [self._spec.score_powers.get(task, 0.0) for task in self._spec.task_names]
        score = tf.exp(tf.reduce_sum(log_probabilities * tf.constant(powers, tf.float32), axis=-1))
        outputs = {task: tf.exp(log_probabilities[..., k]) * mask for k, task in enumerate(self._spec.task_names)}
        return {**outputs, SCORE: score * mask, CANDIDATE_MASK: mask}

    def _learn_what_is_carried(self) -> None:
        """The specs of cache, states and summary, and the summary of no candidate."""
        batch = empty_batch(self.model.inputs_spec)
        cache, longer = (
            self.model.encode_user(batch["user"], sequences)
            for sequences in (batch["sequences"], _twice(batch["sequences"]))
        )
        self._masks = frozenset(name for name, tensor in cache.items() if tensor.dtype == tf.bool)
        nobody = {**batch["candidates"], "mask": tf.zeros_like(batch["candidates"]["mask"])}
        states, self._nothing = summarize_candidates(self.model, cache, batch["context"], nobody)
        self._cache_specs = {
            CACHE_PREFIX + name: tf.TensorSpec([None, *_common(tensor.shape[1:], longer[name].shape[1:])], tensor.dtype)
            for name, tensor in pack_user_state(
                cache, self._spec.serving.cache_dtype, self.model.full_precision_state
            ).items()
        }
        self._state_specs, self._summary_specs = (
            {prefix + name: tf.TensorSpec([None, None, *tensor.shape[2:]], tensor.dtype) for name, tensor in t.items()}
            for prefix, t in ((STATE_PREFIX, states), (SUMMARY_PREFIX, pack_summary(self._nothing)))
        )


def _at_least_one(sequence: Tensors) -> Tensors:
    """A sequence, padded by an event if nobody has any: TF Serving batches no empty tensor with others."""
    return {
        name: tf.pad(values, [[0, 0], [0, tf.maximum(0, 1 - tf.shape(values)[1])]]) for name, values in sequence.items()
    }


def _common(shape: Sequence[int], other: Sequence[int]) -> list[int | None]:
    """A shape, unknown where another one differs."""
    return [size if size == its else None for size, its in zip(shape, other, strict=True)]


def _twice(sequences: dict[str, dict[str, Any]]) -> dict[str, dict[str, tf.Tensor]]:
    """Every sequence with each event twice."""
    return {
        name: {part: tf.repeat(values, 2, axis=1) for part, values in parts.items()}
        for name, parts in sequences.items()
    }


def _with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, inputs: Tensors, names: Iterable[str]) -> Tensors:
    """Those of the inputs by the names they had before they got a prefix."""
    return {name.removeprefix(prefix): inputs[name] for name in names}


def _concrete(function: Callable[[Tensors], Tensors], inputs: TensorSpecs) -> Any:
    """A signature whose inputs and outputs are named tensors."""
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()}
    # Nothing here branches on tensors, and AutoGraph would read all of Keras to see that.
    return tf.function(lambda **tensors: function(tensors), autograph=False).get_concrete_function(**specs)
