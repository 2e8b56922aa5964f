"""How long a scorer sits on the base-rate plateau: `python -m benchmarks.quality.plateau --help`.

A matching score starts as a constant: every candidate of a task gets its base rate, and cross-entropy is flat there.
The plateau counts as left when each task's normalised entropy on eval requests is below 0.99, that is when the model
knows 1 % of what there is to know beyond the base rate, and stays there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from benchmarks.quality.compare_models import WIDTH_WITHOUT_TERMINAL, load_variants, versions
from trainer.metrics import ranking_metrics
from trainer.models.registry import build_loss, build_model
from trainer.training.trainer import Optimizers, make_train_step, start_at_base_rates, start_from_seed
from transform.datasets.synthetic import write
from transform.errors import UserError
from transform.features.batching import count_labels, request_batches
from transform.ingest.prepare import Prepared, prepare
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec

LEFT_BELOW = 0.99  # normalised entropy
EVERY_STEPS = 10
EVAL_REQUESTS = 512


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    output, console = (
        Path(arguments.output),
        Console() if sys.stdout.isatty() else Console(width=WIDTH_WITHOUT_TERMINAL),
    )
    try:
        data = output / "data" / f"{arguments.scenario}-1"
        if not data.exists():
            write(data, arguments.scenario, 1.0)
        spec = load_spec(data / "spec.yaml")
        variants = load_variants(spec, arguments.variants)
        prepared = prepare(spec, data, output / "prepared")
        found = {
            name: [measure(prepared, variant.spec.with_seed(seed), arguments.steps) for seed in arguments.seeds]
            for name, variant in variants.items()
        }
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(spec, found, arguments.steps, console)
    (output / f"plateau-{Path(arguments.variants).stem}.json").write_text(
        json.dumps({"versions": versions(), "runs": found}, indent=1)
    )
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.plateau",
        description="Counts the training steps until a model knows more than the base rates, on synthetic data.",
    )
    parser.add_argument("--variants", required=True, help="a YAML file: by name, sections that replace the spec's")
    parser.add_argument("--output", required=True, help="a folder for data and results")
    parser.add_argument("--scenario", default="conflict", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="(default: 1 to 5)")
    return parser.parse_args(argv)


def measure(prepared: Prepared, spec: RankingSpec, steps: int) -> dict[str, Any]:
    """Trains for some steps; the step at which the plateau was left (None: it was not), and the course."""
    start_from_seed(spec.training)
    files = {split: prepared.files("transformed", split) for split in ("train", "eval")}
    model = build_model(spec.model, prepared.inputs)
    start_at_base_rates(model, count_labels(prepared.inputs, files["train"]))
    loss_fn = build_loss(model, spec.model.loss)
    settings = spec.training
    batches = request_batches(
        prepared.inputs, files["train"], settings.batch_requests, settings.shuffle_requests, settings.seed
    ).repeat()
    optimizers = Optimizers(spec.training, model, loss_fn, steps)
    step_fn = make_train_step(model, loss_fn, optimizers, settings, batches.element_spec)
    held_out = list(request_batches(prepared.inputs, files["eval"], EVAL_REQUESTS).take(1))
    course = []
    for step, (batch, targets) in enumerate(batches.take(steps + 1)):
        if step % EVERY_STEPS == 0:
            course.append((step, _normalized_entropy(model, *held_out[0])))
        step_fn(batch, targets)
    behind = [step for step, values in course if not all(value < LEFT_BELOW for value in values)]  # NaN is behind
    left = behind[-1] + EVERY_STEPS if behind else 0
    return {"seed": settings.seed, "left_at": left if left <= steps else None, "course": course}


def _normalized_entropy(model: Any, batch: dict, targets: dict) -> list[float]:
    scores = tf.sigmoid(tf.cast(model(batch, training=False), tf.float32)).numpy()
    labels, there = targets["labels"].numpy(), targets["weights"].numpy()
    tasks = range(labels.shape[-1])
    return [ranking_metrics.normalized_entropy(labels[..., k], scores[..., k], there[..., k]) for k in tasks]


def print_table(spec: RankingSpec, found: dict[str, list[dict[str, Any]]], steps: int, console: Console) -> None:
    """The step of each seed, and the normalised entropy after the last."""
    table = Table(
        title=f"{spec.name}: steps until every task's normalised entropy is below {LEFT_BELOW}", title_justify="left"
    )
    table.add_column("model")
    for run in next(iter(found.values())):
        table.add_column(f"seed {run['seed']}", justify="right")
    for task in spec.task_names:
        table.add_column(f"{task}, at the end\nmean ± sd", justify="right")
    for name, runs in found.items():
        cells = ["-" if run["left_at"] is None else str(run["left_at"]) for run in runs]
        last = np.array([run["course"][-1][1] for run in runs])
        cells += [f"{of_task.mean():.4f} ± {of_task.std(ddof=1):.4f}" for of_task in last.T]
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
