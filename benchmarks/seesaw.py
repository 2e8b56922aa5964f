"""What each task gains or loses by learning with the others: `python -m benchmarks.seesaw --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transform.environment import prepare_environment

prepare_environment()

from rich.console import Console
from rich.table import Table

from benchmarks.quality import WIDTH_WITHOUT_TERMINAL, for_task
from trainer.training.gradient_probe import SeesawRow, seesaw, write_seesaw
from trainer.training.trainer import evaluate, train
from transform.errors import UserError
from transform.ingest.prepare import Prepared, prepare
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and prints the table; returns 1 when the user has something to correct."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seesaw",
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
        inputs = replace(prepared.inputs, tasks=tasks)
        trained = train(spec, inputs, files["train"], files["eval"], os.path.join(folder, name))
        return evaluate(spec, trained.model, files["test"])

    spec = prepared.spec
    together = test_metrics(spec, spec.task_names, "together")
    alone = {task: test_metrics(for_task(spec, task), (task,), task)[task] for task in spec.task_names}
    rows = seesaw(together, alone, metric)
    write_seesaw(rows, os.path.join(folder, "together"))
    return rows


def print_table(spec: RankingSpec, rows: Sequence[SeesawRow], console: Console) -> None:
    """A row a task."""
    table = Table(title=f"Seesaw of {spec.name}, test {rows[0].metric.upper()}, one seed", title_justify="left")
    for name in ("task", "together", "alone", "gain"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in rows:
        table.add_row(row.task, f"{row.together:.4f}", f"{row.alone:.4f}", f"{row.gain:+.4f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
