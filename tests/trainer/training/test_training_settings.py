"""Precision, XLA, padded shapes and recomputed blocks: settings that change how a training computes, not what."""

import itertools
import logging
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.testing.trainings import rewritten, same_weights, weights_of, with_model, with_training
from trainer.models.registry import build_loss, build_model
from trainer.ops.kernels import use_kernels
from trainer.training import check_settings as check_settings_module
from trainer.training import epoch, trainer
from trainer.training.precision import autocast
from trainer.training.trainer import Optimizers, make_train_step, train
from trainer.training.training_state import TrainingState
from transform.errors import PipelineError, SpecError
from transform.features.batching import request_batches
from transform.features.padding import bucket_sizes, count_buckets
from transform.spec.model_sections import EarlyStopping, Loss, Model, Optimizer, Training

STEPS = 10
LISTWISE = Loss(infonce=0.3)
ONERANK = Model(name="onerank", d=16, layers=1, heads=2, ffn_ratio=2, loss=LISTWISE)
DROPPING = Model(name="onerank", d=16, layers=1, heads=2, ffn_ratio=2, dropout=0.3, loss=LISTWISE)
DIN = Model(name="din", d=8, head={"name": "shared_bottom", "hidden": [16]}, loss=LISTWISE)
MIXED = "mixed_bfloat16"


class Job:
    """A model of the small problem with its loss, its optimizers, its batches and its step, as `train` makes them."""

    def __init__(self, small, model=ONERANK, files=None, **settings):
        settings = {"embedding_l2": 1e-3, "embedding_optimizer": Optimizer(name="adagrad"), **settings}
        self.spec = with_training(with_model(small.spec, model), **settings)
        self.settings = self.spec.training
        keras.utils.set_random_seed(1)
        self.model = build_model(model, small.inputs())
        self.loss_fn = build_loss(self.model, model.loss)
        self.optimizers = Optimizers(self.spec.training, self.model, self.loss_fn, STEPS)
        files = files or small.transformed["train"]
        self.batches = request_batches(
            *(small.inputs(), files, self.settings.batch_requests),
            pad_to_buckets_of=self.spec.request.max_candidates if self.settings.jit_compile else None,
        )
        self.step = make_train_step(self.model, self.loss_fn, self.optimizers, self.settings, self.batches.element_spec)

    def losses(self, steps=STEPS):
        """The tasks' losses of some steps, [steps, K]."""
        return np.array([self.step(*batch)[1].numpy() for batch in self.batches.take(steps)])

    def gradients(self, batch, targets):
        """Losses and gradients of one batch, without a step."""

        @tf.function
        def measure(batch, targets):
            with tf.GradientTape() as tape:
                losses = self.loss_fn(self.model(batch, training=True), targets["labels"], targets["weights"])
                loss = tf.reduce_sum(losses) + self.settings.embedding_l2 * self.model.embedding.penalty(batch)
            gradients = tape.gradient(loss, [variable.value for variable in self.optimizers.variables])
            return losses, [tf.convert_to_tensor(gradient) for gradient in gradients]

        losses, gradients = measure(batch, targets)
        return [losses.numpy(), *(gradient.numpy() for gradient in gradients)]


def assert_close(actual, expected, tolerance):
    """Arrays, up to a tolerance relative to the largest value of each."""
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1e-3))


@pytest.fixture(scope="module")
def few(small, tmp_path_factory):
    """Requests for two whole batches of 16 and a part of one."""
    return rewritten(small.transformed["train"], tmp_path_factory.mktemp("few") / "few.gz", limit=40)


@pytest.fixture(scope="module")
def plain(small):
    """The losses of a step as it is without any of the settings."""
    return Job(small).losses()


# === Every way computes the same ===


@pytest.mark.parametrize(
    "settings",
    [{"gradient_checkpointing": True}, {"jit_compile": True, "gradient_checkpointing": True}],
    ids=lambda settings: "+".join(settings),
)
def test_the_settings_change_no_loss(small, plain, settings):
    assert_close(Job(small, **settings).losses(), plain, 1e-5)


def test_the_portable_kernel_changes_no_loss(small, plain):
    with use_kernels("portable"):
        assert_close(Job(small).losses(), plain, 1e-5)


def test_a_graph_changes_no_loss(small, plain):
    tf.config.run_functions_eagerly(True)
    try:
        eager = Job(small).losses(3)
    finally:
        tf.config.run_functions_eagerly(False)
    assert_close(eager, plain[:3], 1e-5)


@pytest.mark.parametrize("settings", [{}, {"jit_compile": True, "gradient_checkpointing": True}], ids=["alone", "all"])
def test_losses_in_bfloat16_are_near(small, plain, settings):
    mixed = Job(small, precision=MIXED, **settings).losses()
    assert_close(mixed, plain, 0.05)
    assert np.abs(mixed - plain).max() > 1e-4, "it should compute in bfloat16"


# === XLA ===


def test_xla_compiles_the_step_that_trains(small, few, tmp_path, monkeypatch, caplog):
    """The step that `train` calls, on the batches that it is called with; and the records are those without XLA."""
    made, batches = [], []

    def recorded(*arguments, make=trainer.make_train_step):
        step = make(*arguments)
        made.append(step)

        def call(batch, targets):
            batches.append((batch, targets))
            return step(batch, targets)

        return call

    monkeypatch.setattr(trainer, "make_train_step", recorded)
    spec = with_training(with_model(small.spec, ONERANK), epochs=2, batch_requests=16, early_stopping=None)
    caplog.set_level(logging.INFO)
    inputs, evaluated = small.inputs(), small.transformed["eval"]
    runs = {
        jit: train(with_training(spec, jit_compile=jit), inputs, few, evaluated, str(tmp_path / str(jit)))
        for jit in (False, True)
    }
    for one, other in zip(runs[True].epochs, runs[False].epochs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        for task in small.spec.task_names:
            assert one["eval"][task] == pytest.approx(other["eval"][task], rel=1e-3)

    assert [is_compiled_by_xla(step) for step in made] == [False, True]
    with_xla = [batch for batch, _ in batches[len(batches) // 2 :]]
    assert {len(batch["candidates"]["mask"]) for batch in with_xla} == {16}, "the last batch is padded"
    shapes = {shapes_of(batch) for batch in with_xla}
    assert f"XLA compiled the training step for {len(shapes)} shapes" in caplog.text
    assert f"at most {count_buckets(small.inputs(), spec.request.max_candidates)} are possible" in caplog.text
    compiled = made[1].experimental_get_compiler_ir(*batches[-1])(stage="hlo")
    assert compiled.startswith("HloModule") and "dot(" in compiled
    strings = [op.name for op in made[1].get_concrete_function().graph.get_operations() if holds_strings(op)]
    assert strings == [], "XLA knows no strings"


def is_compiled_by_xla(step):
    return step.get_concrete_function().function_def.attr["_XlaMustCompile"].b


def holds_strings(operation):
    return any(tensor.dtype == tf.string for tensor in (*operation.inputs, *operation.outputs))


def shapes_of(batch):
    return tuple(tuple(tensor.shape) for tensor in tf.nest.flatten(batch))


# === Padded shapes ===


def test_buckets_double_up_to_the_largest_size():
    assert [bucket_sizes(size) for size in (1, 8, 9, 20, 64)] == [
        (1,),
        (8,),
        (8, 9),
        (8, 16, 20),
        (8, 16, 32, 64),
    ]


@pytest.mark.parametrize("model", [ONERANK, DIN], ids=lambda model: model.name)
def test_padding_changes_neither_losses_nor_gradients(small, few, model):
    """On the last batch, which has fewer requests; the means over requests don't count those that are padding."""
    job = Job(small, model, few, embedding_l2=0.1)
    *_, whole = request_batches(small.inputs(), few, 16)
    *_, padded = request_batches(small.inputs(), few, 16, pad_to_buckets_of=job.spec.request.max_candidates)
    assert whole[0]["candidates"]["mask"].shape[0] == 8 and padded[0]["candidates"]["mask"].shape[0] == 16
    assert_close(job.gradients(*padded), job.gradients(*whole), 1e-5)


def test_padded_batches_have_few_shapes_and_hold_what_the_others_hold(small):
    inputs = small.inputs()
    longer = replace(inputs, sequences=tuple(replace(sequence, length=30) for sequence in inputs.sequences))
    files, shapes = small.transformed["train"], set()
    for (batch, targets), (padded, padded_targets) in zip(
        request_batches(longer, files, 7), request_batches(longer, files, 7, pad_to_buckets_of=40), strict=True
    ):
        shapes.add(shapes_of(padded))
        for whole, more in zip(
            tf.nest.flatten((batch, targets)), tf.nest.flatten((padded, padded_targets)), strict=True
        ):
            inside = tuple(slice(0, size) for size in whole.shape)
            np.testing.assert_array_equal(more[inside], whole)
            assert np.count_nonzero(more) == np.count_nonzero(whole)
        assert padded["candidates"]["mask"].shape[1] in bucket_sizes(40)
        assert {events["mask"].shape[1] for events in padded["sequences"].values()} <= set(bucket_sizes(30))
    assert 1 < len(shapes) <= count_buckets(longer, 40) == 4 * 3 * 3


# === Recomputing ===


def test_recomputed_blocks_have_the_gradients_and_the_dropout_of_kept_ones(small, few):
    """Twice: the random states move on as far."""
    kept, recomputed = (
        Job(small, DROPPING, few, gradient_checkpointing=gradient_checkpointing)
        for gradient_checkpointing in (False, True)
    )
    ((batch, targets),) = request_batches(small.inputs(), few, 40)
    first, second = ([job.gradients(batch, targets) for job in (kept, recomputed)] for _ in range(2))
    for of_kept, of_recomputed in (first, second):
        assert_close(of_recomputed, of_kept, 1e-6)
    assert np.abs(first[0][0] - second[0][0]).max() > 1e-3, "dropout should be on"
    assert same_weights(weights_of(kept.model), weights_of(recomputed.model)), "random states are among them"


def test_recomputing_keeps_no_activation_of_a_block(small):
    """The block's forward pass stands in the step twice."""
    with use_kernels("portable"):
        plain, recomputing = (
            count_softmax(Job(small, gradient_checkpointing=gradient_checkpointing))
            for gradient_checkpointing in (False, True)
        )
    assert recomputing == plain + 2, "the only block's: of the context, and of the task tokens before candidates"


def count_softmax(job):
    return sum(operation.type == "Softmax" for operation in job.step.get_concrete_function().graph.get_operations())


def test_recomputing_wants_blocks(small, few, tmp_path):
    spec = with_training(with_model(small.spec, DIN), gradient_checkpointing=True)
    with pytest.raises(
        SpecError,
        match="a model whose blocks can be computed again is expected. Received: `din`",
    ):
        train(spec, small.inputs(), few, few, str(tmp_path))
    assert not list(tmp_path.iterdir())


# === Precision ===


def test_bfloat16_is_for_matrix_products_alone(small):
    with use_kernels("portable"):
        job = Job(small, precision=MIXED)
        graph = job.step.get_concrete_function().graph
    dtypes = {}
    for operation in graph.get_operations():
        dtypes.setdefault(operation.type, set()).update(tensor.dtype for tensor in operation.outputs)
    assert tf.bfloat16 in dtypes["MatMul"] | dtypes["BatchMatMulV2"]
    for float32 in ("Softmax", "Softplus", "SquaredDifference"):
        assert dtypes[float32] == {tf.float32}, float32
    tables = {tuple(table.embeddings.shape) for table in job.model.embedding.tables.values()}
    casts = [op.outputs[0] for op in graph.get_operations() if op.type == "Cast" and op.outputs[0].dtype == tf.bfloat16]
    assert casts and not any(tuple(cast.shape) in tables for cast in casts), "whole tables should not be cast"
    variables = [*job.model.trainable_variables, *job.optimizers.state, *job.loss_fn.variables]
    assert {variable.dtype for variable in variables if "int" not in variable.dtype} == {"float32"}
    assert {layer.compute_dtype for layer in job.model._flatten_layers()} == {"float32"}, "the step alone is mixed"


@pytest.mark.parametrize("precision", ["float32", MIXED])
def test_of_tables_rows_are_read_alone(small, precision):
    """With an optimizer that writes rows, a reading of a whole table would copy it."""
    job = Job(small, precision=precision, optimizer=Optimizer(name="lazy_adamw"), embedding_optimizer=None)
    operations = job.step.get_concrete_function().graph.get_operations()
    tables = {tuple(table.embeddings.shape) for table in job.model.embedding.tables.values()}
    read = [tuple(op.outputs[0].shape) for op in operations if op.type == "ReadVariableOp"]
    assert read and not tables.intersection(read)


def test_a_precision_ends_with_its_block(small):
    model = build_model(DIN, small.inputs())
    with pytest.raises(RuntimeError), autocast(model, MIXED):
        assert {layer.compute_dtype for layer in model._flatten_layers()} == {"bfloat16"}
        raise RuntimeError
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}


# === Resume ===


def test_with_all_settings_a_training_goes_on_exactly(small, few, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def interrupted(*arguments, make=trainer.make_train_step):
        step, calls = make(*arguments), iter(range(4))

        def call(batch, targets):
            if next(calls) == 3:
                raise Interrupted
            return step(batch, targets)

        return call

    spec = with_training(
        with_model(small.spec, DROPPING),
        epochs=2,
        batch_requests=16,
        checkpoint_every=2,
        early_stopping=EarlyStopping(task="buy", patience=2),
        **{"precision": MIXED, "jit_compile": True, "gradient_checkpointing": True},
    )
    job = (spec, small.inputs(), few, small.transformed["eval"])
    alone = train(*job, str(tmp_path / "alone"))
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(trainer, "make_train_step", interrupted)
        train(*job, str(tmp_path / "first"), str(tmp_path / "checkpoints"))
    resumed = train(*job, str(tmp_path / "second"), str(tmp_path / "checkpoints"))
    assert same_weights(weights_of(resumed.model), weights_of(alone.model))
    assert resumed.epochs == alone.epochs
    assert not resumed.model.gradient_checkpointing, "it is no part of the model"


# === The loop ===


def run_epoch(losses, steps, batches=None, **settings):
    """An epoch of steps with given losses."""
    given = iter(losses)
    batches = tf.data.Dataset.range(steps) if batches is None else batches
    training_state = TrainingState(["buy"], None)
    epoch.run_epoch(
        Training(**settings),
        tf.data.Dataset.zip((batches, batches)),
        lambda *_: (tf.constant(next(given)), tf.constant([0.5])),
        NoProbe(),
        steps,
        training_state,
        None,
        set(),
    )
    return training_state


class NoProbe:
    def before_step(self, *_):
        pass


def test_losses_are_read_in_their_order():
    training_state = run_epoch([float(n) for n in range(23)], 23)
    assert training_state.losses == [[0, 0.0, 0.5], [10, 10.0, 0.5], [20, 20.0, 0.5]]
    assert (training_state.step, training_state.loss) == (23, sum(range(23)))


def test_the_first_loss_that_is_not_finite_is_named():
    with pytest.raises(PipelineError, match="Received: nan in step 13 of epoch 1"):
        run_epoch([1.0] * 13 + [float("nan")] * 7, 20)


def test_batches_come_in_their_order_with_their_errors_and_can_be_left():
    def failing():
        yield from range(3)
        raise OSError("gone")

    came = []
    with pytest.raises(OSError, match="gone"):
        for number in epoch.PrefetchTimer().over(failing()):
            came.append(number)
    assert came == [0, 1, 2]
    for number in epoch.PrefetchTimer().over(itertools.count()):
        if number == 5:
            break
    assert number == 5


def test_the_wait_for_batches_is_logged(caplog):
    def slow(value):
        time.sleep(0.05)
        return value

    caplog.set_level(logging.INFO)
    batches = tf.data.Dataset.range(5).map(lambda n: tf.py_function(slow, [n], tf.int64))
    run_epoch([1.0] * 5, 5, batches)
    share = float(caplog.text.split(" s, ")[1].split(" %")[0])
    assert 50 < share <= 100


def test_settings_are_checked_with_tables_of_one_row(small, monkeypatch):
    """A run that begins must not wait for, nor hold, the tables of a training."""
    made = []
    real = check_settings_module.build_model
    monkeypatch.setattr(check_settings_module, "build_model", lambda *given: made.append(real(*given)) or made[-1])
    spec = small.spec.model_copy(update={"model": Model(name="din", d=4)})
    check_settings_module.check_settings(spec)
    (model,) = made
    assert {variable.shape[0] for variable in model.embedding.trainable_variables} == {1}
    assert len(model.embedding.trainable_variables) == len(small.inputs().rows)
