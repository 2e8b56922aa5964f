"""The training loop: one for all models, with progress, TensorBoard, early stopping and checkpoints."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer import metrics
from trainer.diagnostics import GradientProbe, write_json
from trainer.layers.ranking_loss import RankingLoss
from trainer.models.base import RankingModel
from trainer.models.registry import build_model
from transform.batches import LabelCounts, count_labels, request_batches
from transform.columns import ModelInputs
from transform.errors import PipelineError, SpecError
from transform.spec import RankingSpec
from transform.spec_sections import Optimizer

EPOCH_METRICS = ("auc", "gauc", "normalized_entropy", "calibration")
LOG_EVERY_STEPS = 10
LAST_RATE = 0.1  # of the learning rate, at the end of the cosine

_OPTIMIZERS = {
    "adamw": keras.optimizers.AdamW,
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
) -> Trained:
    """Trains the model of a spec.

    The tasks' biases start at their base rates. Writes into `run_dir`: `logs/` for TensorBoard,
    `checkpoints/last.weights.h5` and `checkpoints/best.weights.h5`, `training.json` with the metrics of each epoch, and
    `gradients.json` with the tasks' gradients as `diagnostics.GradientProbe` measures them.

    Args:
        spec: RankingSpec.
        inputs: ModelInputs. Its tasks are those that are learned; they may be a part of the spec's.
        train_files: sequence of str. Transformed examples to learn from.
        eval_files: sequence of str. Transformed examples for early stopping.
        run_dir: str. A folder.

    Returns:
        The model and its course.

    Raises:
        SpecError: when the model's settings are wrong, or early stopping watches a task that is not learned.
        PipelineError: when there is nothing to learn from, or the loss is no longer finite.
    """
    settings = spec.training
    if settings.early_stopping and settings.early_stopping.task not in inputs.tasks:
        raise SpecError(
            f"training.early_stopping.task: one of the tasks that are learned, {', '.join(inputs.tasks)}, is expected. "
            f"Received: `{settings.early_stopping.task}`. Watch one of them."
        )
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()
    counts = count_labels(spec, train_files, inputs.tasks)
    if counts.requests == 0:
        raise PipelineError("split.train: requests to learn from are expected. Received: none. Widen the range.")
    steps = -(-counts.requests // settings.batch_requests)
    model = build_model(spec.model, inputs)
    start_at_base_rates(model, counts)
    logging.info(
        "%s: %d parameters, %d requests in %d steps", spec.model.name, model.count_params(), counts.requests, steps
    )
    loss_fn = build_loss(spec, inputs.tasks)
    optimizers = Optimizers(spec, model, loss_fn, steps * settings.epochs)
    batches = request_batches(
        spec, train_files, settings.batch_requests, settings.shuffle_requests, settings.seed, inputs.tasks
    )
    step_fn = make_train_step(model, loss_fn, optimizers, settings.embedding_l2, batches.element_spec)
    probe = GradientProbe(model, loss_fn, inputs.tasks, batches.element_spec, settings.gradients_every)
    watch = _Watch(spec, model, os.path.join(run_dir, "checkpoints"))
    writer = tf.summary.create_file_writer(os.path.join(run_dir, "logs"))
    with writer.as_default():
        for epoch in range(settings.epochs):
            loss = _run_epoch(inputs.tasks, batches, step_fn, probe, steps, epoch, settings.epochs)
            values = evaluate(spec, model, eval_files)
            for task, of_task in values.items():
                for name, value in of_task.items():
                    tf.summary.scalar(f"eval/{task}/{name}", value, step=epoch)
            if watch.after_epoch(epoch, loss, values):
                break
    watch.restore_best()
    write_json(os.path.join(run_dir, "training.json"), {"best_epoch": watch.best_epoch, "epochs": watch.epochs})
    write_json(os.path.join(run_dir, "gradients.json"), probe.measured)
    return Trained(model, watch.epochs, watch.best_epoch)


def start_at_base_rates(model: RankingModel, counts: LabelCounts) -> None:
    """Sets the bias of each task's logits to the logit of its base rate."""
    model.task_bias.assign(np.log(counts.base_rates / (1 - counts.base_rates)))


def build_loss(spec: RankingSpec, tasks: tuple[str, ...]) -> RankingLoss:
    """The loss of a spec for some of its tasks."""
    weights = {task.name: task.weight for task in spec.tasks}
    loss_fn = RankingLoss([weights[task] for task in tasks], spec.model.loss.infonce, spec.model.loss.temperature)
    loss_fn.build()
    return loss_fn


def build_optimizer(settings: Optimizer, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a spec, its schedule stretched over all steps."""
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps, alpha=LAST_RATE)
    extra = {} if settings.weight_decay is None else {"weight_decay": settings.weight_decay}
    return _OPTIMIZERS[settings.name](learning_rate=rate, **extra)


def predict(spec: RankingSpec, model: RankingModel, files: Sequence[str]) -> dict[str, metrics.Rows]:
    """Scores transformed examples.

    Args:
        spec: RankingSpec.
        model: RankingModel.
        files: sequence of str. Transformed examples.

    Returns:
        By task: labels, probabilities and requests of all candidates whose label is there.
    """
    tasks = model.inputs_spec.tasks
    batches = request_batches(spec, files, spec.training.batch_requests, tasks=tasks)

    @tf.function(input_signature=[batches.element_spec[0]])
    def score(batch: dict) -> tf.Tensor:
        return tf.sigmoid(tf.cast(model(batch, training=False), tf.float32))

    parts: list[tuple[np.ndarray, ...]] = []
    first_request = 0
    for batch, targets in batches:
        present = batch["candidates"]["mask"].numpy()
        request = np.broadcast_to(first_request + np.arange(len(present))[:, None], present.shape)
        first_request += len(present)
        arrays = (targets["labels"].numpy(), score(batch).numpy(), targets["mask"].numpy(), request)
        parts.append(tuple(array[present] for array in arrays))
    k = len(tasks)
    parts = parts or [(np.zeros((0, k)), np.zeros((0, k)), np.zeros((0, k)), np.zeros(0, "int64"))]
    labels, scores, weights, groups = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {
        task: metrics.Rows.observed(labels[:, k], scores[:, k], groups, weights[:, k]) for k, task in enumerate(tasks)
    }


def evaluate(spec: RankingSpec, model: RankingModel, files: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each task's metrics on transformed examples."""
    return {
        task: {name: float(metrics.compute(name, rows)) for name in EPOCH_METRICS}
        for task, rows in predict(spec, model, files).items()
    }


class Optimizers:
    """One optimizer for all variables, or one for the embedding tables and one for the rest."""

    def __init__(self, spec: RankingSpec, model: RankingModel, loss_fn: RankingLoss, steps: int):
        settings = spec.training
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
            optimizer.build(part)

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
    model: RankingModel, loss_fn: RankingLoss, optimizers: Optimizers, embedding_l2: float, element_spec: Any
) -> Any:
    """A compiled training step: (batch, targets) to the loss and the tasks' losses [K]."""

    @tf.function(input_signature=list(element_spec))
    def step(batch: dict, targets: dict) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            losses = loss_fn(model(batch, training=True), targets["labels"], targets["mask"])
            loss = tf.reduce_sum(losses)
            if embedding_l2:
                loss += embedding_l2 * model.embedding.penalty(batch)
        optimizers.apply(tape.gradient(loss, [variable.value for variable in optimizers.variables]))
        return loss, losses

    return step


def _run_epoch(
    tasks: Sequence[str],
    batches: tf.data.Dataset,
    step_fn: Any,
    probe: GradientProbe,
    steps: int,
    epoch: int,
    epochs: int,
) -> float:
    """One pass over the training data; returns the mean loss."""
    total = 0.0
    bar = Progress(
        TextColumn(f"    epoch {epoch + 1}/{epochs}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        transient=True,
        disable=not sys.stdout.isatty(),
    )
    with bar:
        shown = bar.add_task("train", total=steps, loss=float("nan"))
        for index, (batch, targets) in enumerate(batches):
            step = epoch * steps + index
            probe.before_step(step, batch, targets)
            loss, losses = step_fn(batch, targets)
            value = float(loss)
            if not np.isfinite(value):
                raise PipelineError(
                    f"training: a finite loss is expected. Received: {value} in step {index} of epoch {epoch + 1}. "
                    "Lower `training.optimizer.learning_rate`, and look for extreme values in `identity` features."
                )
            total += value
            bar.update(shown, advance=1, loss=total / (index + 1))
            if index % LOG_EVERY_STEPS == 0:
                tf.summary.scalar("train/loss", loss, step=step)
                for task, of_task in zip(tasks, losses, strict=True):
                    tf.summary.scalar(f"train/loss/{task}", of_task, step=step)
    return total / steps


class _Watch:
    """Keeps the last and the best weights and says when to stop."""

    def __init__(self, spec: RankingSpec, model: RankingModel, folder: str):
        self._stopping = spec.training.early_stopping
        self._model = model
        self._folder = folder
        self.epochs: list[dict[str, Any]] = []
        self.best_epoch = -1
        self._best = -np.inf

    def after_epoch(self, epoch: int, loss: float, values: dict[str, dict[str, float]]) -> bool:
        """Records an epoch and saves its weights; returns whether training should stop."""
        self.epochs.append({"epoch": epoch, "loss": loss, "eval": values})
        self._save("last")
        of_tasks = "  ".join(f"{task} {value['auc']:.4f}" for task, value in values.items())
        print(f"    epoch {epoch + 1}: loss {loss:.4f}  eval AUC: {of_tasks}", flush=True)
        if self._stopping is None:
            self.best_epoch = epoch
            self._save("best")
            return False
        value = values[self._stopping.task][self._stopping.metric]
        value = -value if self._stopping.metric == "normalized_entropy" else value
        if self.best_epoch < 0 or value > self._best:  # the first epoch counts even when its metric is undefined
            self._best = value if np.isfinite(value) else -np.inf
            self.best_epoch = epoch
            self._save("best")
        return epoch - self.best_epoch >= self._stopping.patience

    def restore_best(self) -> None:
        """Gives the model its best weights."""
        self._model.load_weights(self._path("best"))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, f"{name}.weights.h5")

    def _save(self, name: str) -> None:
        os.makedirs(self._folder, exist_ok=True)
        unfinished = os.path.join(self._folder, f".{name}.weights.h5")
        self._model.save_weights(unfinished)
        os.replace(unfinished, self._path(name))
