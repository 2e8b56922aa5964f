"""`run_epoch`: the steps of an epoch, one behind the other."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.training.checkpoints import TrainingCheckpoints
from trainer.training.gradient_probe import GradientProbe
from trainer.training.training_state import TrainingState
from transform.errors import PipelineError
from transform.spec.model_sections import Training

LOG_EVERY_STEPS = 10


def run_epoch(
    settings: Training,
    batches: tf.data.Dataset,
    step_fn: Any,
    probe: GradientProbe,
    steps: int,
    training_state: TrainingState,
    checkpoints: TrainingCheckpoints | None,
    shapes: set[Any],
) -> float:
    """Trains for the rest of the epoch at which the training stands.

    Losses are read, and checked, every `LOG_EVERY_STEPS` steps, so that a device need not wait for Python in between.

    Args:
        settings: Training.
        batches: dataset of (batch, targets). Those that are left of the epoch.
        step_fn: callable. What `training.make_train_step` returns.
        probe: GradientProbe.
        steps: int. The steps of a whole epoch.
        training_state: TrainingState. Gets what is measured.
        checkpoints: TrainingCheckpoints, optional.
        shapes: set. The shapes of the batches are added.

    Returns:
        The mean loss of the whole epoch.

    Raises:
        PipelineError: when a loss is not finite.
    """
    epoch = len(training_state.epochs)
    bar = Progress(
        TextColumn(f"    epoch {epoch + 1}/{settings.epochs}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        transient=True,
        disable=not sys.stdout.isatty(),
    )
    unread: list[tuple[tf.Tensor, tf.Tensor]] = []
    timer = PrefetchTimer()
    started = time.perf_counter()
    with bar:
        shown = bar.add_task("train", total=steps, completed=training_state.step, loss=float("nan"))
        for batch, targets in timer.over(batches):
            step = epoch * steps + training_state.step + len(unread)
            shapes.add(tuple(tuple(tensor.shape) for tensor in tf.nest.flatten(batch)))
            probe.before_step(step, batch, targets)
            unread.append(step_fn(batch, targets))
            bar.update(shown, advance=1)
            saves = checkpoints is not None and (step + 1) % settings.checkpoint_every == 0
            if saves or len(unread) == LOG_EVERY_STEPS:
                _read(unread, training_state, steps)
                bar.update(shown, loss=training_state.loss / training_state.step)
            if checkpoints is not None and saves:
                checkpoints.save()
        _read(unread, training_state, steps)
    seconds = time.perf_counter() - started
    share = 100 * timer.seconds / seconds
    logging.info("Epoch %d: %.1f s, %.1f %% of it spent waiting for batches", epoch + 1, seconds, share)
    return training_state.loss / steps


def _read(unread: list[tuple[tf.Tensor, tf.Tensor]], training_state: TrainingState, steps: int) -> None:
    """Moves the training state over steps that were begun: waits for their losses, checks and records them."""
    epoch = len(training_state.epochs)
    for loss, per_task in unread:
        value = float(loss)
        if not np.isfinite(value):
            raise PipelineError(
                f"training: a finite loss is expected. Received: {value} in step {training_state.step} of epoch "
                f"{epoch + 1}. Lower `training.optimizer.learning_rate`, and look for extreme values in `identity` "
                "features."
            )
        if training_state.step % LOG_EVERY_STEPS == 0:
            training_state.add_losses(epoch * steps + training_state.step, value, per_task.numpy().tolist())
        training_state.step += 1
        training_state.loss += value
    unread.clear()


class PrefetchTimer:
    """How long the loop stood still for want of a batch, in `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; the next one is fetched while the loop works on one."""
        iterator = iter(batches)
        with ThreadPoolExecutor(1) as fetcher:
            coming = fetcher.submit(next, iterator, None)
            while True:
                started = time.perf_counter()
                batch = coming.result()
                self.seconds += time.perf_counter() - started
                if batch is None:
                    return
                coming = fetcher.submit(next, iterator, None)
                yield batch
