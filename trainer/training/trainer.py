"""The training loop: one for all models, with progress, TensorBoard, early stopping and checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transform.extras import require_extra

require_extra("train", "trainer.training.trainer", "tensorboard", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

from trainer.losses.base import RankingLoss
from trainer.metrics import ranking_metrics
from trainer.models.base import RankingModel
from trainer.models.recomputable import RecomputableBlocks
from trainer.models.registry import build_loss, build_model
from trainer.training.check_settings import check_training
from trainer.training.checkpoints import TrainingCheckpoints
from trainer.training.cost import batch_cost
from trainer.training.epoch import run_epoch
from trainer.training.gradient_probe import GradientProbe, write_json
from trainer.training.lazy_adamw import LazyAdamW
from trainer.training.precision import autocast
from trainer.training.training_state import TrainingState
from transform.errors import PipelineError, SpecError
from transform.features.batching import LabelCounts, count_labels, request_batches, request_ids
from transform.features.model_inputs import ModelInputs
from transform.features.padding import count_buckets
from transform.import_path import is_import_path
from transform.spec.metric_table import METRICS
from transform.spec.model_sections import Optimizer, Training
from transform.spec.ranking_spec import RankingSpec

NOTICES = logging.getLogger("onerank")  # what a user should read, whatever happens to the libraries' logs
EPOCH_METRICS = tuple(row.name for row in METRICS if row.in_epochs)
LAST_RATE = 0.1  # of the learning rate, at the end of the cosine

_OPTIMIZERS = {
    "adamw": keras.optimizers.AdamW,
    "lazy_adamw": LazyAdamW,
    "adam": keras.optimizers.Adam,
    "adagrad": keras.optimizers.Adagrad,
    "sgd": keras.optimizers.SGD,
}


@dataclass
class Trained:
    """What training leaves.

    Attributes:
        model: RankingModel. With the best weights, or the last when nothing was to be watched.
        epochs: list of dict. Per epoch the training loss and each task's metrics on the eval split.
        best_epoch: int. The epoch (from 0) whose weights the model has.
    """

    model: RankingModel
    epochs: list[dict[str, Any]]
    best_epoch: int


def train(
    spec: RankingSpec,
    inputs: ModelInputs,
    train_files: Sequence[str],
    eval_files: Sequence[str],
    run_dir: str,
    checkpoint_dir: str | None = None,
) -> Trained:
    """Trains the model of a spec.

    With a `checkpoint_dir` that a killed process left behind, training goes on from its checkpoint and ends with the
    same weights and records, bit by bit, as without the interruption (if `training.deterministic` is set, as it is by
    default).

    The tasks' biases start at their base rates. Writes into `run_dir`: `logs/` for TensorBoard,
    `checkpoints/last.weights.h5` and `checkpoints/best.weights.h5`, `training.json` with the metrics of each epoch, and
    `gradients.json` with the tasks' gradients as `gradient_probe.GradientProbe` measures them.

    Args:
        spec: RankingSpec.
        inputs: ModelInputs. Its tasks are those that are learned; they may be a part of the spec's.
        train_files: sequence of str. Transformed examples to learn from.
        eval_files: sequence of str. Transformed examples for early stopping.
        run_dir: str. A folder.
        checkpoint_dir: str, optional. The folder of this training's checkpoints, for the same spec, code and files
            alone; the caller deletes it when it needs it no more. Defaults to no checkpoints.

    Returns:
        The model and its records.

    Raises:
        SpecError: when the model's settings are wrong, or early stopping watches a task that is not learned.
        PipelineError: when there is nothing to learn from, early stopping has nothing to watch, the loss is no longer
            finite, or a checkpoint can't be read.
    """
    settings = spec.training
    tasks = inputs.task_names
    if settings.early_stopping and settings.early_stopping.task not in tasks:
        raise SpecError(
            f"training.early_stopping.task: one of the tasks that are learned, {', '.join(tasks)}, is expected. "
            f"Received: `{settings.early_stopping.task}`. Watch one of them."
        )
    start_from_seed(settings)
    counts = count_labels(inputs, train_files)
    if counts.requests == 0:
        raise PipelineError("split.train: requests to learn from are expected. Received: none. Widen the range.")
    if settings.early_stopping:
        _check_watched(inputs, eval_files, settings.early_stopping.task)
    steps = -(-counts.requests // settings.batch_requests)
    model = build_model(spec.model, inputs)
    check_training(spec, model)
    start_at_base_rates(model, counts)
    cost = batch_cost(model, settings.batch_requests, round(counts.candidates / counts.requests), 10**6)
    size = f"{counts.requests:,} requests in {steps:,} steps"
    print(f"    {spec.model.name}: {size}; {cost}, with full histories", flush=True)
    loss_fn = build_loss(model, spec.model.loss)
    optimizers = Optimizers(settings, model, loss_fn, steps * settings.epochs)
    training_state = TrainingState(tasks, settings.early_stopping)
    best, last = (os.path.join(run_dir, "checkpoints", f"{name}.weights.h5") for name in ("best", "last"))
    checkpoints = None
    if checkpoint_dir and settings.checkpoint_every:
        variables = [*model.variables, *loss_fn.variables, *optimizers.state]
        checkpoints = TrainingCheckpoints(checkpoint_dir, variables, training_state, best)
    with tf.summary.create_file_writer(os.path.join(run_dir, "logs")).as_default():
        if checkpoints and checkpoints.restore():
            NOTICES.warning(
                "Training goes on after %d epochs and %d steps.", len(training_state.epochs), training_state.step
            )
        element_spec = _epoch_batches(spec, inputs, train_files, 0).element_spec
        step_fn = make_train_step(model, loss_fn, optimizers, settings, element_spec)
        probe = GradientProbe(model, loss_fn, tasks, element_spec, settings.gradients_every, training_state.gradients)
        shapes: set[Any] = set()
        while len(training_state.epochs) < settings.epochs and not training_state.is_over:
            batches = _epoch_batches(spec, inputs, train_files, len(training_state.epochs), training_state.step)
            loss = run_epoch(settings, batches, step_fn, probe, steps, training_state, checkpoints, shapes)
            values = evaluate(spec, model, eval_files)
            is_best = training_state.add_epoch(loss, values)
            if is_best and settings.early_stopping:
                _save_weights(model, best)
            per_task = "  ".join(f"{task} {value['auc']:.4f}" for task, value in values.items())
            print(f"    epoch {len(training_state.epochs)}: loss {loss:.4f}  eval AUC: {per_task}", flush=True)
            if checkpoints:
                checkpoints.save()
    if settings.jit_compile:
        logging.info(
            "XLA compiled the training step for %d shapes of a batch; %s", len(shapes), _most_shapes(spec, inputs)
        )
    if isinstance(model, RecomputableBlocks):
        model.gradient_checkpointing = False
    _save_weights(model, last)
    if settings.early_stopping:
        model.load_weights(best)
    else:
        _save_weights(model, best)
    write_json(
        os.path.join(run_dir, "training.json"),
        {"best_epoch": training_state.best_epoch, "epochs": training_state.epochs},
    )
    write_json(os.path.join(run_dir, "gradients.json"), training_state.gradients)
    return Trained(model, training_state.epochs, training_state.best_epoch)


def start_from_seed(settings: Training) -> None:
    """Seeds all random numbers of this process, and makes TensorFlow's operations deterministic if the spec says so."""
    keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()


def _check_watched(inputs: ModelInputs, eval_files: Sequence[str], task: str) -> None:
    """A metric of one class is undefined: the first epoch would be the best for want of another."""
    counts = count_labels(inputs.for_tasks([task]), eval_files)
    if not 0 < counts.positives[0] < counts.observed[0]:
        raise PipelineError(
            f"training.early_stopping.task: a task with positives and negatives in the eval split is expected. "
            f"Received: `{task}`, {counts.positives[0]:g} positives of {counts.observed[0]:g}. Watch another task, or "
            "widen `split.eval`."
        )


def _most_shapes(spec: RankingSpec, inputs: ModelInputs) -> str:
    has_sets = any(column.kind == "ids" for column in inputs.columns)
    most = count_buckets(inputs, spec.request.max_candidates)
    return f"at most {most} are possible" + ", for each size of the sets" * has_sets


def start_at_base_rates(model: RankingModel, counts: LabelCounts) -> None:
    """Sets the bias of each task's logits to the logit of its base rate, in a model that has such a bias."""
    bias = model.initial_bias()
    if bias is not None:
        bias.assign(np.log(counts.base_rates / (1 - counts.base_rates)))


def build_optimizer(settings: Optimizer, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a spec, its schedule stretched over all steps."""
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps, alpha=LAST_RATE)
    extra = {} if settings.weight_decay is None else {"weight_decay": settings.weight_decay}
    return _OPTIMIZERS[settings.name](learning_rate=rate, **extra)


def predict(spec: RankingSpec, model: RankingModel, files: Sequence[str]) -> dict[str, ranking_metrics.Rows]:
    """Scores transformed examples.

    Args:
        spec: RankingSpec.
        model: RankingModel.
        files: sequence of str. Transformed examples.

    Returns:
        By task: labels, probabilities and requests of all candidates whose label is there. The parts of a request that
        is longer than `request.max_candidates` are one request.
    """
    tasks = model.inputs_spec.task_names
    batches = request_batches(model.inputs_spec, files, spec.training.batch_requests)

    @tf.function(input_signature=[batches.element_spec[0]], autograph=False)
    def score(batch: dict) -> tf.Tensor:
        return tf.sigmoid(tf.cast(model(batch, training=False), tf.float32))

    parts: list[tuple[np.ndarray, ...]] = []
    numbers: dict[bytes, int] = {}  # of requests, in the order in which they come
    for (batch, targets), ids in tf.data.Dataset.zip((batches, request_ids(files, spec.training.batch_requests))):
        present = batch["candidates"]["mask"].numpy()
        of_example = np.array([numbers.setdefault(name, len(numbers)) for name in ids.numpy()])
        request = np.broadcast_to(of_example[:, None], present.shape)
        arrays = (targets["labels"].numpy(), score(batch).numpy(), targets["weights"].numpy(), request)
        parts.append(tuple(array[present] for array in arrays))
    k = len(tasks)
    parts = parts or [(np.zeros((0, k)), np.zeros((0, k)), np.zeros((0, k)), np.zeros(0, "int64"))]
    labels, scores, weights, groups = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {
        task: ranking_metrics.Rows.observed(labels[:, k], scores[:, k], groups, weights[:, k])
        for k, task in enumerate(tasks)
    }


def evaluate(spec: RankingSpec, model: RankingModel, files: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each task's metrics on transformed examples.

    Those of every epoch, that of early stopping, and those of the user's own that `evaluation.metrics` names.
    """
    stopping = spec.training.early_stopping
    own = [name for name in spec.evaluation.metrics if is_import_path(name)]
    names = dict.fromkeys([*EPOCH_METRICS, *([stopping.metric] if stopping else []), *own])
    return {
        task: {name: ranking_metrics.compute(name, rows) for name in names}
        for task, rows in predict(spec, model, files).items()
    }


class Optimizers:
    """One optimizer for all variables, or one for the embedding tables and one for the rest."""

    def __init__(self, settings: Training, model: RankingModel, loss_fn: RankingLoss, steps: int):
        variables = [*model.trainable_variables, *loss_fn.trainable_variables]
        tables = {id(variable) for variable in model.embedding.trainable_variables}
        self._parts = [(build_optimizer(settings.optimizer, steps), variables)]
        if settings.embedding_optimizer is not None and tables:
            of_tables = build_optimizer(settings.embedding_optimizer, steps)
            self._parts = [
                (self._parts[0][0], [variable for variable in variables if id(variable) not in tables]),
                (of_tables, [variable for variable in variables if id(variable) in tables]),
            ]
        for optimizer, part in self._parts:
            if isinstance(optimizer, LazyAdamW):
                optimizer.exclude_from_weight_decay([variable for variable in part if id(variable) in tables])
            optimizer.build(part)

    @property
    def state(self) -> list[Any]:
        """What the optimizers keep between steps."""
        return [variable for optimizer, _ in self._parts for variable in optimizer.variables]

    @property
    def variables(self) -> list[Any]:
        """Everything that is learned."""
        return [variable for _, part in self._parts for variable in part]

    def apply(self, gradients: Sequence[Any]) -> None:
        """One step; the gradients in the order of `variables`."""
        start = 0
        for optimizer, part in self._parts:
            optimizer.apply(gradients[start : start + len(part)], part)
            start += len(part)


def make_train_step(
    model: RankingModel, loss_fn: RankingLoss, optimizers: Optimizers, settings: Training, element_spec: Any
) -> Any:
    """A compiled training step: (batch, targets) to the loss and the tasks' losses [K].

    Args:
        model: RankingModel.
        loss_fn: RankingLoss.
        optimizers: Optimizers.
        settings: Training. Of them `precision`, `jit_compile`, `gradient_checkpointing` and `embedding_l2`.
        element_spec: the dataset's (batch, targets).
    """
    if isinstance(model, RecomputableBlocks):
        # in all gradients: those that are measured need the same memory
        model.gradient_checkpointing = settings.gradient_checkpointing

    @tf.function(input_signature=list(element_spec), jit_compile=settings.jit_compile, autograph=False)
    def step(batch: dict, targets: dict) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            with autocast(model, settings.precision):
                logits = model(batch, training=True)
            losses = loss_fn(logits, targets["labels"], targets["weights"])
            loss = tf.reduce_sum(losses)
            for added in [*model.losses, *loss_fn.losses]:  # by `add_loss` or a regularizer: auxiliary objectives
                loss += tf.cast(added, loss.dtype)
            if settings.embedding_l2:
                loss += settings.embedding_l2 * model.embedding.penalty(batch)
        with autocast(model, settings.precision):  # for what is recomputed
            gradients = tape.gradient(loss, [variable.value for variable in optimizers.variables])
        optimizers.apply(gradients)
        return loss, losses

    return step


def _epoch_batches(
    spec: RankingSpec, inputs: ModelInputs, files: Sequence[str], epoch: int, skip: int = 0
) -> tf.data.Dataset:
    """The shuffled training data of an epoch. Each has a seed of its own, so that none depends on those before it."""
    settings = spec.training
    (seed,) = np.random.SeedSequence([settings.seed, epoch]).generate_state(1)
    return request_batches(
        *(inputs, files, settings.batch_requests, settings.shuffle_requests, int(seed), skip),
        pad_to_buckets_of=spec.request.max_candidates if settings.jit_compile else None,
    )


def _save_weights(model: RankingModel, path: str) -> None:
    # By TensorFlow's file systems, as Keras does: an orchestrator's folders may lie in a bucket.
    tf.io.gfile.makedirs(os.path.dirname(path))
    unfinished = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}")
    model.save_weights(unfinished)
    tf.io.gfile.rename(unfinished, path, overwrite=True)
