"""`TrainingState`: where a training stands and what it recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.training.gradient_probe import log_gradients
from transform.spec.metric_table import find_metric
from transform.spec.model_sections import EarlyStopping


class TrainingState:
    """All that training knows beside its variables: plain numbers, which a checkpoint holds as JSON.

    What is recorded goes to TensorBoard (the default summary writer) as well, and once more when a state is restored:
    the process that goes on writes into a folder of its own.

    Args:
        tasks: sequence of str. The names of the K tasks.
        stopping: EarlyStopping, optional. What says which epoch is the best; without it the last one is.

    Attributes:
        step: int. The steps that are done in the epoch that runs.
        loss: float. The sum of their losses.
        epochs: list of dict. The epochs that are done: `epoch` (from 0), the mean `loss`, and the metrics `eval`.
        best_epoch: int. -1 before the first one is done.
        losses: list. Rows of [step, loss, and each task's loss]; steps are counted over all epochs.
        gradients: list of dict. What `GradientProbe` measured.
    """

    def __init__(self, tasks: Sequence[str], stopping: EarlyStopping | None):
        self._tasks = list(tasks)
        self._stopping = stopping
        self.step = 0
        self.loss = 0.0
        self.epochs: list[dict[str, Any]] = []
        self.best_epoch = -1
        self.losses: list[list[Any]] = []
        self.gradients: list[dict[str, Any]] = []

    @property
    def is_over(self) -> bool:
        """Whether early stopping ends the training."""
        return self._stopping is not None and len(self.epochs) - 1 - self.best_epoch >= self._stopping.patience

    def add_losses(self, step: int, loss: float, per_task: Sequence[float]) -> None:
        """Records the loss and the tasks' losses [K] of a step."""
        self.losses.append([step, loss, *per_task])
        self._log_losses(self.losses[-1])

    def add_epoch(self, loss: float, values: dict[str, dict[str, float]]) -> bool:
        """Records an epoch that is done, with its mean loss and metrics; returns whether it is the best so far."""
        epoch = len(self.epochs)
        self.epochs.append({"epoch": epoch, "loss": loss, "eval": values})
        self._log_epoch(self.epochs[-1])
        self.step, self.loss = 0, 0.0
        if self._is_better(epoch):
            self.best_epoch = epoch
        return self.best_epoch == epoch

    def to_json(self) -> str:
        """Everything, exactly."""
        return json.dumps({name: value for name, value in vars(self).items() if not name.startswith("_")})

    def restore(self, text: str) -> None:
        """Takes over what `to_json` gave, and logs what it had recorded."""
        vars(self).update(json.loads(text))
        for row in self.losses:
            self._log_losses(row)
        for measured in self.gradients:
            log_gradients(measured)
        for epoch in self.epochs:
            self._log_epoch(epoch)

    def _is_better(self, epoch: int) -> bool:
        """Whether an epoch is better than the best one before it."""
        stopping = self._stopping
        if stopping is None or self.best_epoch < 0:  # the first epoch counts even when its metric is undefined
            return True
        new, best = (self.epochs[n]["eval"][stopping.task][stopping.metric] for n in (epoch, self.best_epoch))
        if not np.isfinite(best):
            return bool(np.isfinite(new))
        return bool(new > best if find_metric(stopping.metric).higher_is_better else new < best)

    def _log_losses(self, row: list[Any]) -> None:
        step, loss, *per_task = row
        tf.summary.scalar("train/loss", loss, step=step)
        for task, of_task in zip(self._tasks, per_task, strict=True):
            tf.summary.scalar(f"train/loss/{task}", of_task, step=step)

    def _log_epoch(self, epoch: dict[str, Any]) -> None:
        for task, of_task in epoch["eval"].items():
            for name, value in of_task.items():
                tf.summary.scalar(f"eval/{task}/{name}", value, step=epoch["epoch"])
