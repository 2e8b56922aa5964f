"""What each task gains or loses by learning with the others: `python -m benchmarks.quality.seesaw --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transform.environment import prepare_environment

prepare_environment()

import tensorflow as tf
from rich.console import Console
from rich.table import Table

from benchmarks.quality.compare_models import WIDTH_WITHOUT_TERMINAL, for_task
from trainer.training.gradient_probe import write_json
from trainer.training.trainer import evaluate, train
from transform.errors import UserError
from transform.ingest.prepare import Prepared, prepare
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec


@dataclass(frozen=True)
class SeesawRow:
    """One task, learned with the others and alone.

    Attributes:
        task: str.
        metric: str.
        together: float. The metric of the multi-task model.
        alone: float. The metric of the single-task model.
    """

    task: str
    metric: str
    together: float
    alone: float

    @property
    def gain(self) -> float:
        """What learning together gives; negative where the task pays for the others."""
        return self.together - self.alone


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and prints the table; returns 1 when the user has something to correct."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.seesaw",
        description="Trains the model of a spec on all tasks, then one on each alone, and compares them on the test "
        "split: a table, seesaw.json and TensorBoard logs in <output>/<name>/together.",
    )
    parser.add_argument("--spec", required=True, help="a ranking spec")
    parser.add_argument("--data", required=True, help="the folder of its data")
    parser.add_argument("--output", required=True, help="a folder for results")
    parser.add_argument("--metric", default="auc", choices=["auc", "gauc"], help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_WITHOUT_TERMINAL)
    try:
        spec = load_spec(arguments.spec)
        prepared = prepare(spec, arguments.data, Path(arguments.output) / "prepared")
        rows = measure(prepared, os.path.join(arguments.output, spec.name), arguments.metric)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(spec, rows, console)
    return 0


def measure(prepared: Prepared, folder: str, metric: str) -> list[SeesawRow]:
    """Trains 1 + K models and writes the comparison beside the first."""
    files = {split: prepared.files("transformed", split) for split in ("train", "eval", "test")}

    def test_metrics(spec: RankingSpec, tasks: tuple[str, ...], name: str) -> dict[str, dict[str, float]]:
        inputs = prepared.inputs.for_tasks(tasks)
        trained = train(spec, inputs, files["train"], files["eval"], os.path.join(folder, name))
        return evaluate(spec, trained.model, files["test"])

    spec = prepared.spec
    together = test_metrics(spec, spec.task_names, "together")
    alone = {task: test_metrics(for_task(spec, task), (task,), task)[task] for task in spec.task_names}
    rows = seesaw(together, alone, metric)
    write_seesaw(rows, os.path.join(folder, "together"))
    return rows


def seesaw(
    together: Mapping[str, Mapping[str, float]], alone: Mapping[str, Mapping[str, float]], metric: str = "auc"
) -> list[SeesawRow]:
    """The seesaw table: each task of a multi-task model against a model of that task alone.

    Args:
        together: mapping. The multi-task model's metrics by task, as `evaluate` returns them.
        alone: mapping. By task, the metrics of the model that learned this task alone.
        metric: str. Defaults to `"auc"`.

    Returns:
        One row per task.
    """
    return [SeesawRow(task, metric, together[task][metric], alone[task][metric]) for task in together]


def write_seesaw(rows: Sequence[SeesawRow], run_dir: str) -> None:
    """Writes the seesaw table to `seesaw.json` and to TensorBoard (`seesaw/...`, and as a text table).

    Args:
        rows: sequence of SeesawRow.
        run_dir: str. The multi-task model's folder.
    """
    write_json(os.path.join(run_dir, "seesaw.json"), [{**asdict(row), "gain": row.gain} for row in rows])
    lines = ["| task | metric | together | alone | gain |", "|---|---|---|---|---|"]
    with tf.summary.create_file_writer(os.path.join(run_dir, "logs")).as_default():
        for row in rows:
            lines.append(f"| {row.task} | {row.metric} | {row.together:.4f} | {row.alone:.4f} | {row.gain:+.4f} |")
            tf.summary.scalar(f"seesaw/{row.metric}/{row.task}", row.gain, step=0)
        tf.summary.text("seesaw", "\n".join(lines), step=0)


def print_table(spec: RankingSpec, rows: Sequence[SeesawRow], console: Console) -> None:
    """One row per task."""
    table = Table(title=f"Seesaw of {spec.name}, test {rows[0].metric.upper()}, one seed", title_justify="left")
    for name in ("task", "together", "alone", "gain"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in rows:
        table.add_row(row.task, f"{row.together:.4f}", f"{row.alone:.4f}", f"{row.gain:+.4f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
