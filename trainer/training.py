"""The training loop: one for all models, with progress, TensorBoard, early stopping and checkpoints."""

from __future__ import annotations

import json
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
from trainer.losses import multi_task_loss
from trainer.models.base import RankingModel
from trainer.models.registry import build_model
from transform.batches import count_requests, request_batches
from transform.columns import ModelInputs
from transform.errors import PipelineError
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

    Writes into `run_dir`: `logs/` for TensorBoard, `checkpoints/last.weights.h5` and `checkpoints/best.weights.h5`,
    and `training.json` with the metrics of each epoch.

    Args:
        spec: RankingSpec.
        inputs: ModelInputs.
        train_files: sequence of str. Transformed examples to learn from.
        eval_files: sequence of str. Transformed examples for early stopping.
        run_dir: str. A folder.

    Returns:
        The model and its course.

    Raises:
        SpecError: when the model's settings are wrong.
        PipelineError: when there is nothing to learn from, or the loss is no longer finite.
    """
    settings = spec.training
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()
    requests = count_requests(train_files)
    if requests == 0:
        raise PipelineError("split.train: requests to learn from are expected. Received: none. Widen the range.")
    steps = -(-requests // settings.batch_requests)
    model = build_model(spec.model, inputs)
    logging.info("%s: %d parameters, %d requests in %d steps", spec.model.name, model.count_params(), requests, steps)
    optimizer = build_optimizer(settings.optimizer, steps * settings.epochs)
    optimizer.build(model.trainable_variables)
    batches = request_batches(spec, train_files, settings.batch_requests, settings.shuffle_requests, seed=settings.seed)
    step_fn = _train_step(model, optimizer, [task.weight for task in spec.tasks], batches.element_spec)
    watch = _Watch(spec, model, os.path.join(run_dir, "checkpoints"))
    writer = tf.summary.create_file_writer(os.path.join(run_dir, "logs"))
    with writer.as_default():
        for epoch in range(settings.epochs):
            loss = _run_epoch(spec, batches, step_fn, optimizer, steps, epoch)
            values = evaluate(spec, model, eval_files)
            for task, of_task in values.items():
                for name, value in of_task.items():
                    tf.summary.scalar(f"eval/{task}/{name}", value, step=epoch)
            if watch.after_epoch(epoch, loss, values):
                break
    watch.restore_best()
    _write_json(os.path.join(run_dir, "training.json"), {"best_epoch": watch.best_epoch, "epochs": watch.epochs})
    return Trained(model, watch.epochs, watch.best_epoch)


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
    batches = request_batches(spec, files, spec.training.batch_requests)

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
    k = len(spec.task_names)
    parts = parts or [(np.zeros((0, k)), np.zeros((0, k)), np.zeros((0, k)), np.zeros(0, "int64"))]
    labels, scores, weights, groups = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {
        task: metrics.Rows.observed(labels[:, k], scores[:, k], groups, weights[:, k])
        for k, task in enumerate(spec.task_names)
    }


def evaluate(spec: RankingSpec, model: RankingModel, files: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each task's metrics on transformed examples."""
    return {
        task: {name: float(metrics.compute(name, rows)) for name in EPOCH_METRICS}
        for task, rows in predict(spec, model, files).items()
    }


def _train_step(
    model: RankingModel, optimizer: keras.optimizers.Optimizer, weights: Sequence[float], element_spec: Any
) -> Any:
    @tf.function(input_signature=list(element_spec))
    def step(batch: dict, targets: dict) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)
            loss, losses = multi_task_loss(tf.cast(logits, tf.float32), targets["labels"], targets["mask"], weights)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss, losses

    return step


def _run_epoch(
    spec: RankingSpec, batches: tf.data.Dataset, step_fn: Any, optimizer: Any, steps: int, epoch: int
) -> float:
    """One pass over the training data; returns the mean loss."""
    total = 0.0
    bar = Progress(
        TextColumn(f"    epoch {epoch + 1}/{spec.training.epochs}"),
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
                step = int(optimizer.iterations)
                tf.summary.scalar("train/loss", loss, step=step)
                for task, of_task in zip(spec.task_names, losses, strict=True):
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


def _write_json(path: str, content: Any) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(content, indent=1))
