"""`ModelContract`: the tests that hold for every model. They need pytest and TensorFlow."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.models.base import RankingModel
from trainer.models.recomputable import RecomputableBlocks
from trainer.models.registry import build_loss, build_model
from trainer.models.setwise import SetwiseScoring, score_summary, summarize_candidates
from trainer.testing.random_batches import EXAMPLE_INPUTS, random_batch
from transform.errors import SpecError
from transform.features.model_inputs import ModelInputs, Task
from transform.spec.model_sections import Model

Batch = dict[str, dict[str, Any]]

CANDIDATES, EVENTS = [4, 2, 1], [5, 0, 3]
PADDED = ~(np.arange(4) < np.array(CANDIDATES)[:, None])


class ModelContract:
    """What holds for every model: subclass it in a test file, and pytest runs all of it on your model.

    ```python
    class TestMyRanker(ModelContract):
        model = {"name": "mypackage.models:MyRanker", "d": 8}
    ```

    Attributes:
        model: dict. The `model` section of a spec; small, so that the tests are fast.
        inputs: ModelInputs. What the model is tested on. Defaults to inputs of all kinds.
    """

    model: ClassVar[dict[str, Any]]
    inputs: ClassVar[ModelInputs] = EXAMPLE_INPUTS

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls) -> RankingModel:
        """The model, its weights moved from where they start: biases and scales do not hide what they do."""
        return cls.build()

    @classmethod
    def build(cls, inputs: ModelInputs | None = None) -> RankingModel:
        """A model of the same numbers each time."""
        keras.utils.set_random_seed(0)
        built = build_model(Model(**cls.model), inputs or cls.inputs)
        random = np.random.default_rng(0)
        for variable in built.trainable_variables:
            variable.assign(variable + random.normal(0, 0.3, variable.shape))
        return built

    def batch(self, candidates: list[int] = CANDIDATES, events: list[int] = EVENTS, seed: int = 0) -> Batch:
        """A random batch of three requests, one of them without events."""
        return random_batch(self.inputs, candidates, events, seed=seed)

    def changed(self, batch: Batch, group: str, where: np.ndarray) -> Batch:
        """The batch with other values of a group at some places."""
        other, result = self.batch([4] * 3, [5] * 3, seed=9), copy.deepcopy(batch)
        pairs = [(result[group], other[group])]
        if group == "sequences":
            pairs = [(result[group][name], other[group][name]) for name in result[group]]
        for target, source in pairs:
            for name in target.keys() - {"mask"}:
                place = where.reshape(where.shape + (1,) * (target[name].ndim - where.ndim))
                target[name] = np.where(place, source[name], target[name]).astype(target[name].dtype)
        return result

    # === Logits ===

    def test_there_is_a_logit_per_candidate_and_task(self, built: RankingModel) -> None:
        logits = logits_of(built, self.batch())
        assert logits.shape == (3, 4, len(self.inputs.tasks)) and logits.dtype == np.float32
        assert np.isfinite(logits).all() and np.ptp(logits[~PADDED]) > 0.1

    def test_calling_the_model_is_encoding_and_scoring(self, built: RankingModel) -> None:
        batch = self.batch()
        state = built.encode_user(batch["user"], batch["sequences"], training=False)
        scored = built.score_candidates(state, batch["context"], batch["candidates"], training=False)
        np.testing.assert_allclose(_numpy(scored), logits_of(built, batch), rtol=1e-5, atol=1e-6)
        assert all(tensor.shape[0] == 3 for tensor in state.values()), "the first axis of the user state is B"

    def test_the_user_state_does_not_depend_on_what_was_scored_before(self, built: RankingModel) -> None:
        batch, states = self.batch(), []
        other = self.changed(self.changed(batch, "context", np.ones(3, bool)), "candidates", np.ones((3, 4), bool))
        for scored in (batch, other):
            logits_of(built, scored)
            states.append(built.encode_user(batch["user"], batch["sequences"], training=False))
        for name, tensor in states[0].items():
            np.testing.assert_array_equal(_numpy(states[1][name]), _numpy(tensor), err_msg=name)

    @pytest.mark.parametrize("group", ["user", "context", "sequences", "candidates"])
    def test_every_group_of_features_matters(self, built: RankingModel, group: str) -> None:
        shape = {"sequences": (3, 5), "candidates": (3, 4)}.get(group, (3,))
        other = self.changed(self.batch(), group, np.ones(shape, bool))
        difference = np.abs(logits_of(built, other) - logits_of(built, self.batch()))
        assert difference[0].max() > 1e-3, f"{group} should matter"

    def test_requests_of_a_batch_do_not_depend_on_each_other(self, built: RankingModel) -> None:
        together = logits_of(built, self.batch())
        alone = keras.tree.map_structure(lambda array: array[1:2], self.batch())
        np.testing.assert_allclose(logits_of(built, alone), together[1:2], rtol=1e-5, atol=1e-5)

    def test_padded_candidates_change_nothing(self, built: RankingModel) -> None:
        batch = self.batch()
        expected = logits_of(built, batch)[~PADDED]
        refilled = logits_of(built, self.changed(batch, "candidates", PADDED))
        np.testing.assert_allclose(refilled[~PADDED], expected, rtol=1e-5, atol=1e-5)
        wider = copy.deepcopy(batch)
        for name, values in batch["candidates"].items():
            wider["candidates"][name] = np.pad(values, [(0, 0), (0, 3)] + [(0, 0)] * (values.ndim - 2))
        np.testing.assert_allclose(logits_of(built, wider)[:, :4][~PADDED], expected, rtol=1e-5, atol=1e-5)

    def test_padded_events_change_nothing(self, built: RankingModel) -> None:
        batch = self.batch()
        expected = logits_of(built, batch)
        no_event = ~(np.arange(5) < np.array(EVENTS)[:, None])
        np.testing.assert_allclose(
            logits_of(built, self.changed(batch, "sequences", no_event)), expected, rtol=1e-5, atol=1e-5
        )
        longer = copy.deepcopy(batch)
        for events in longer["sequences"].values():
            events.update({name: np.pad(values, [(0, 0), (0, 1)]) for name, values in events.items()})
        np.testing.assert_allclose(logits_of(built, longer), expected, rtol=1e-5, atol=1e-5)

    def test_users_may_have_no_events(self, built: RankingModel) -> None:
        masked = self.batch()
        for events in masked["sequences"].values():
            events["mask"] = np.zeros_like(events["mask"])
        without = copy.deepcopy(masked)
        for events in without["sequences"].values():
            events.update({name: values[:, :0] for name, values in events.items()})
        logits = logits_of(built, without)
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(logits_of(built, masked), logits, rtol=1e-5, atol=1e-5)

    def test_a_request_may_have_one_candidate(self, built: RankingModel) -> None:
        logits = logits_of(built, self.batch(candidates=[1, 1, 1]))
        assert logits.shape == (3, 1, len(self.inputs.tasks)) and np.isfinite(logits).all()

    def test_inputs_may_have_neither_sequences_nor_context(self) -> None:
        kept = tuple(column for column in self.inputs.columns if column.group in ("user", "candidate"))
        inputs = replace(self.inputs, columns=kept, sequences=())
        logits = logits_of(self.build(inputs), random_batch(inputs, CANDIDATES, EVENTS))
        assert logits.shape == (3, 4, len(inputs.tasks)) and np.isfinite(logits).all()

    def test_there_may_be_one_task(self) -> None:
        inputs = self.inputs.for_tasks(self.inputs.task_names[:1])
        try:
            built = self.build(inputs)
        except SpecError as error:
            pytest.skip(f"these settings are for {len(self.inputs.tasks)} tasks: {error}")
        assert logits_of(built, random_batch(inputs, CANDIDATES, EVENTS)).shape == (3, 4, 1)

    # === Candidates of a request ===

    def test_only_setwise_models_let_candidates_depend_on_each_other(self, built: RankingModel) -> None:
        batch = self.batch(candidates=[4, 4, 4])
        others = np.array([[True, False, True, True]] * 3)
        difference = np.abs(logits_of(built, self.changed(batch, "candidates", others)) - logits_of(built, batch))
        assert (difference[:, [0, 2, 3]].max(axis=-1) > 1e-4).all(), "the others did change"
        if isinstance(built, SetwiseScoring):
            assert difference[:, 1].max() > 1e-4, "a setwise model without such a dependence needs no mixin"
        else:
            assert difference[:, 1].max() < 1e-5, "a model whose candidates depend on each other is `SetwiseScoring`"

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_parts_of_a_list_are_scored_as_the_whole(self, built: RankingModel, size: int) -> None:
        batch = self.batch(candidates=[7, 2, 3])  # some parts are padding alone
        there = batch["candidates"]["mask"]
        np.testing.assert_allclose(
            score_in_parts(built, batch, size)[there], logits_of(built, batch)[there], rtol=1e-5, atol=1e-5
        )

    # === Compiled, saved, in other precision ===

    @pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
    def test_it_computes_the_same_when_compiled_with_open_shapes(self, built: RankingModel, jit_compile: bool) -> None:
        def describe(array: np.ndarray) -> tf.TensorSpec:
            return tf.TensorSpec([None] * array.ndim, array.dtype)

        signature = [keras.tree.map_structure(describe, self.batch())]
        compiled = tf.function(lambda batch: built(batch, training=False), signature, jit_compile=jit_compile)
        for batch in (self.batch(), self.batch(candidates=[1, 1, 1]), self.batch(events=[0, 0, 0])):
            actual = compiled(keras.tree.map_structure(tf.constant, batch)).numpy()
            np.testing.assert_allclose(actual, logits_of(built, batch), rtol=1e-5, atol=1e-5)

    def test_all_variables_exist_before_the_first_batch(self) -> None:
        fresh = self.build()
        before = [variable.path for variable in fresh.variables]
        logits_of(fresh, self.batch())
        assert [variable.path for variable in fresh.variables] == before

    def test_its_config_survives_json_and_gives_the_model_back(self, built: RankingModel) -> None:
        config = json.loads(json.dumps(built.get_config()))
        settings = {key: value for key, value in self.model.items() if key not in ("name", "loss")}
        assert not settings.keys() - config.keys(), "`get_config` should hold every setting"
        assert {key: config[key] for key in settings} == settings
        twin = _twin(built, config)
        assert twin.get_config() == built.get_config()
        np.testing.assert_array_equal(logits_of(twin, self.batch()), logits_of(built, self.batch()))

    def test_a_keras_file_gives_the_model_back(self, built: RankingModel, tmp_path: Path) -> None:
        built.save(tmp_path / "model.keras")
        known = {type(built).__name__: type(built)}
        loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=known)
        assert type(loaded) is type(built)
        np.testing.assert_array_equal(logits_of(loaded, self.batch()), logits_of(built, self.batch()))

    def test_a_file_of_weights_fits_a_new_model(self, built: RankingModel, tmp_path: Path) -> None:
        built.save_weights(tmp_path / "model.weights.h5")
        twin = type(built).from_config(built.get_config())
        twin.create_variables()
        twin.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_array_equal(logits_of(twin, self.batch()), logits_of(built, self.batch()))

    def test_mixed_precision_reaches_every_layer(self, built: RankingModel) -> None:
        mixed = _twin(built, {**built.get_config(), "dtype": "mixed_bfloat16"})
        assert {layer.compute_dtype for layer in mixed._flatten_layers()} == {"bfloat16"}
        assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
        exact, logits = logits_of(built, self.batch()), mixed(self.batch())
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        np.testing.assert_allclose(_numpy(logits), exact, atol=0.1 * np.abs(exact).max())

    # === Training ===

    def test_the_gradient_of_its_loss_reaches_every_weight(self, built: RankingModel) -> None:
        loss = self._loss(built)
        gradients = self._gradients(built, lambda: loss)
        for variable, gradient in zip(built.trainable_variables, gradients, strict=True):
            assert gradient is not None, f"{variable.path} gets no gradient"
            assert np.isfinite(gradient).all() and np.any(gradient), f"{variable.path} gets no gradient"

    def test_its_loss_is_one_value_per_task(self, built: RankingModel) -> None:
        losses = self._losses(built, self._loss(built))
        assert losses.shape == (len(self.inputs.tasks),) and np.isfinite(losses).all()

    def test_its_loss_weighs_the_tasks(self, built: RankingModel) -> None:
        """As `tasks[].weight` of the spec says: twice the weight is twice the loss."""
        weights = np.arange(1, len(self.inputs.tasks) + 1)
        tasks = [replace(task, weight=float(weight)) for task, weight in zip(self.inputs.tasks, weights, strict=True)]
        ones = [replace(task, weight=1.0) for task in self.inputs.tasks]
        weighted, plain = (
            self._losses(built, self._loss(self._with_weights_of(built, some))) for some in (tasks, ones)
        )
        np.testing.assert_allclose(_numpy(weighted), _numpy(plain) * weights, rtol=1e-5)

    def test_what_stands_where_no_label_is_reaches_neither_loss_nor_gradient(self, built: RankingModel) -> None:
        loss, (b, n, k) = self._loss(built), (3, 4, len(self.inputs.tasks))
        random = np.random.default_rng(2)
        logits, labels = (random.normal(size=(b, n, k)).astype("float32"), random.integers(0, 2, (b, n, k)))
        weights = (~PADDED[..., None] * np.ones(k)).astype("float32")
        results = []
        for nothing in (0.0, np.nan):
            filled = tf.constant(np.where(PADDED[..., None], nothing, logits).astype("float32"))
            with tf.GradientTape() as tape:
                tape.watch(filled)
                total = tf.reduce_sum(loss(filled, labels.astype("float32"), weights))
            results.append((float(total), np.where(PADDED[..., None], 0, tape.gradient(total, filled).numpy())))
        assert np.isfinite(results[1][0]) and np.isfinite(results[1][1]).all(), "a NaN of padding is multiplied by 0"
        np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-6)
        np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-7)

    def test_every_weight_of_its_loss_is_there_before_training_and_learns(self, built: RankingModel) -> None:
        loss = self._loss(built)
        before = [variable.path for variable in loss.trainable_variables]
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(self._losses(built, loss))
        assert [variable.path for variable in loss.trainable_variables] == before
        gradients = tape.gradient(total, [variable.value for variable in loss.trainable_variables])
        assert all(gradient is not None and np.any(gradient) for gradient in gradients)

    def test_the_initial_bias_moves_the_logits_of_its_task_alone(self) -> None:
        built = self.build()
        bias = built.initial_bias()
        if bias is None:
            pytest.skip("the model has no bias that starts at base rates")
        assert tuple(bias.shape) == (len(self.inputs.tasks),)
        before = logits_of(built, self.batch())
        by = np.arange(1, len(self.inputs.tasks) + 1, dtype="float32")
        bias.assign(_numpy(bias) + by)
        moved = logits_of(built, self.batch()) - before
        np.testing.assert_allclose(moved[~PADDED], np.broadcast_to(by, moved[~PADDED].shape), rtol=1e-5, atol=1e-5)

    def test_gradients_are_the_same_when_blocks_are_computed_again(self, built: RankingModel) -> None:
        if not isinstance(built, RecomputableBlocks):
            pytest.skip("the model has no blocks that can be computed again")
        loss = self._loss(built)
        kept = self._gradients(built, lambda: loss, training=False)
        with _recompute(built):
            again = self._gradients(built, lambda: loss, training=False)
        for variable, expected, actual in zip(built.trainable_variables, kept, again, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6, err_msg=variable.path)

    def _loss(self, built: RankingModel) -> Any:
        return build_loss(built, Model(**self.model).loss)

    def _with_weights_of(self, built: RankingModel, tasks: list[Task]) -> RankingModel:
        config = {**built.get_config(), "inputs": replace(self.inputs, tasks=tuple(tasks)).to_config()}
        return type(built).from_config(config)

    def _losses(self, built: RankingModel, loss: Any, training: bool = False) -> Any:
        batch = self.batch(candidates=[4, 4, 4])
        shape = (3, 4, len(self.inputs.tasks))
        labels = np.random.default_rng(1).integers(0, 2, shape).astype("float32")
        return loss(built(batch, training=training), labels, np.ones(shape, "float32"))

    def _gradients(self, built: RankingModel, loss: Callable[[], Any], training: bool = True) -> list[Any]:
        with tf.GradientTape() as tape:
            losses = self._losses(built, loss(), training)
            total = tf.reduce_sum(losses) + sum(tf.cast(added, "float32") for added in built.losses)
        gradients = tape.gradient(total, [variable.value for variable in built.trainable_variables])
        return [None if gradient is None else tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def logits_of(model: RankingModel, batch: Batch) -> np.ndarray:
    """The logits [B, N, K] of a batch, as numpy."""
    return _numpy(model(batch, training=False))


def score_in_parts(model: RankingModel, batch: Batch, size: int) -> np.ndarray:
    """The logits [B, N, K] of a list that is scored `size` candidates at a time, as a client does with long lists."""
    state = model.encode_user(batch["user"], batch["sequences"], training=False)
    width = batch["candidates"]["mask"].shape[1]
    parts = [
        {name: values[:, start : start + size] for name, values in batch["candidates"].items()}
        for start in range(0, width, size)
    ]
    passed = [summarize_candidates(model, state, batch["context"], part) for part in parts]
    summary = {name: keras.ops.concatenate([summary[name] for _, summary in passed], axis=1) for name in passed[0][1]}
    logits = [score_summary(model, state, batch["context"], summary, states) for states, _ in passed]
    return _numpy(keras.ops.concatenate(logits, axis=1))


class _recompute:
    def __init__(self, model: RecomputableBlocks):
        self._model = model

    def __enter__(self) -> None:
        self._model.gradient_checkpointing = True

    def __exit__(self, *_: Any) -> None:
        self._model.gradient_checkpointing = False


def _twin(model: RankingModel, config: dict[str, Any]) -> RankingModel:
    twin = type(model).from_config(config)
    twin.create_variables()
    twin.set_weights(model.get_weights())
    return twin


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))
