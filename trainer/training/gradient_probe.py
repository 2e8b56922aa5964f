"""Where tasks pull apart: their gradients on shared parameters."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from trainer.losses.base import RankingLoss
from trainer.models.base import RankingModel

LARGEST_TABLES = 20_000_000


class GradientProbe:
    """Measures each task's gradient on a training batch, before the step, every so many steps.

    Parameters come in two groups, `embedding` (the tables, if they hold no more than `LARGEST_TABLES` parameters: a
    gradient per task is as large as all of them) and `network` (all else). A pair of tasks is compared on
    the parameters that it shares, those that both send a gradient to: rows or channels of one task alone say nothing
    about conflict. The cosine is in [-1, 1], negative where a step for one is a step against the other, and NaN for
    tasks that share nothing. The measures go to TensorBoard (`gradients/<group>/...`) and into `measured`.

    Args:
        model: RankingModel.
        loss_fn: RankingLoss.
        tasks: sequence of str. The names of the K tasks.
        element_spec: the dataset's (batch, targets).
        every: int. Steps between measurements; 0 for none.
        measured: list, optional. What is measured is added to it. Defaults to a new list.
    """

    def __init__(
        self,
        model: RankingModel,
        loss_fn: RankingLoss,
        tasks: Sequence[str],
        element_spec: Any,
        every: int,
        measured: list[dict[str, Any]] | None = None,
    ):
        self._tasks = list(tasks)
        self._every = every
        self._measure = _measure_fn(model, loss_fn, len(self._tasks), element_spec)
        self.measured: list[dict[str, Any]] = [] if measured is None else measured

    def before_step(self, step: int, batch: dict, targets: dict) -> None:
        """Measures, if it is time to."""
        if not self._every or step % self._every:
            return
        measured: dict[str, Any] = {"step": step}
        for group, (norms, cosines) in self._measure(batch, targets).items():
            pairs = [(a, b) for b in range(len(self._tasks)) for a in range(b)]
            measured[group] = {
                "norm": {task: float(norms[k]) for k, task in enumerate(self._tasks)},
                "cosine": {f"{self._tasks[a]}-{self._tasks[b]}": float(cosines[a, b]) for a, b in pairs},
            }
        self.measured.append(measured)
        log_gradients(measured)


def log_gradients(measured: Mapping[str, Any]) -> None:
    """Writes one of a probe's measurements to TensorBoard."""
    for group in measured.keys() - {"step"}:
        for kind, values in measured[group].items():
            for name, value in values.items():
                tf.summary.scalar(f"gradients/{group}/{kind}/{name}", value, step=measured["step"])


def gradient_conflict(gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Norms and pairwise cosines of gradients.

    Args:
        gradients: Float Tensor [K, P]. One gradient per task over P parameters.

    Returns:
        The norms [K], and the cosines [K, K], each over the parameters where both gradients are not 0.
    """
    products = tf.matmul(gradients, gradients, transpose_b=True)
    sent = tf.cast(tf.not_equal(gradients, 0), gradients.dtype)
    squares = tf.matmul(tf.square(gradients), sent, transpose_b=True)  # [a, b]: of a, where b is not 0 either
    return tf.norm(gradients, axis=1), products / (tf.sqrt(squares) * tf.sqrt(tf.transpose(squares)))


def write_json(path: str, content: Any) -> None:
    """Writes JSON as the standard has it: a number that is not finite becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(plain(content), indent=1, allow_nan=False))


def _measure_fn(model: RankingModel, loss_fn: RankingLoss, tasks: int, element_spec: Any) -> Any:
    tables = {id(variable) for variable in model.embedding.trainable_variables}
    groups = {
        "network": [variable for variable in model.trainable_variables if id(variable) not in tables],
        "embedding": list(model.embedding.trainable_variables),
    }
    size = sum(math.prod(variable.shape) for variable in groups["embedding"])
    if size > LARGEST_TABLES:
        logging.info(
            "Gradients on the embedding tables are not compared: %d parameters, above %d", size, LARGEST_TABLES
        )
        del groups["embedding"]

    @tf.function(input_signature=list(element_spec), autograph=False)
    def measure(batch: dict, targets: dict) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        variables = {group: [variable.value for variable in part] for group, part in groups.items()}
        with tf.GradientTape(persistent=True) as tape:
            # without dropout: to measure changes nothing in the training that it measures
            losses = loss_fn(model(batch, training=False), targets["labels"], targets["weights"])
            by_task = tf.unstack(losses, num=tasks)
        per_task = [tape.gradient(loss, variables, unconnected_gradients="zero") for loss in by_task]
        flat = {group: tf.stack([_flat(gradients[group]) for gradients in per_task]) for group in groups}
        return {group: gradient_conflict(gradients) for group, gradients in flat.items()}

    return measure


def _flat(gradients: list[Any]) -> tf.Tensor:
    return tf.concat([tf.reshape(tf.convert_to_tensor(gradient), [-1]) for gradient in gradients] or [[0.0]], axis=0)
