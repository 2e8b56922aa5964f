"""Models on data with a known truth: `python -m benchmarks.quality.synthetic --help`.

For each scenario, at strength 0 (the effect is off) and 1: every variant beside the oracle, which scores with the true
probabilities, and item popularity. What an effect costs a model is how much further it falls behind the oracle when the
effect is on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality.compare_models import METRICS, WIDTH_WITHOUT_TERMINAL, load_variants, run_all, versions
from benchmarks.quality.oracle import oracle, popularity
from transform.datasets.synthetic import write
from transform.datasets.synthetic_truth import SCENARIOS
from transform.errors import UserError
from transform.ingest.prepare import prepare
from transform.spec.loading import load_spec

Metrics = Mapping[str, Mapping[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints a table a scenario; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_WITHOUT_TERMINAL)
    output = Path(arguments.output)
    try:
        for scenario in arguments.scenarios:
            report = {
                strength: benchmark(scenario, strength, arguments.variants, arguments.seeds, output)
                for strength in arguments.strengths
            }
            print_table(scenario, report, console)
            content = json.dumps({"versions": versions(), "by_strength": report}, indent=1)
            (output / f"{scenario}-{Path(arguments.variants).stem}.json").write_text(content)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.synthetic",
        description="Trains variants of a model on synthetic data with a known truth, each with several seeds.",
    )
    parser.add_argument("--variants", required=True, help="a YAML file: by name, sections that replace the spec's")
    parser.add_argument("--output", required=True, help="a folder for data and results")
    parser.add_argument(
        "--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS), help="(default: all)"
    )
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0], help="(default: 0 1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    return parser.parse_args(argv)


def benchmark(scenario: str, strength: float, variants: str, seeds: Sequence[int], output: Path) -> dict[str, Any]:
    """The oracle's, popularity's and each variant's test metrics: by name, a list over seeds."""
    data = output / "data" / f"{scenario}-{strength:g}"
    if not data.exists():
        write(data, scenario, strength)
    spec = load_spec(data / "spec.yaml")
    prepared = prepare(spec, data, output / "prepared")
    found = run_all(prepared, load_variants(spec, variants), seeds, output)
    return {"oracle": [{"tasks": oracle(data)}], **found, "popularity": [{"tasks": popularity(data)}]}


def print_table(scenario: str, report: Mapping[float, Mapping[str, Any]], console: Console) -> None:
    """The metrics at each strength, and how much more a variant loses to the oracle at the last than at the first."""
    tasks = list(next(iter(report.values()))["oracle"][0]["tasks"])
    for metric in METRICS:
        title = f"{scenario}: test {metric.upper()} (mean ± standard deviation over training seeds, one data set)"
        table = Table(title=title, title_justify="left")
        table.add_column("model")
        for task in tasks:
            lost = ["lost to\nthe effect"] if len(report) > 1 else []
            for name in (*(f"{task}\nstrength {strength:g}" for strength in report), *lost):
                table.add_column(name, justify="right")
        for variant in next(iter(report.values())):
            cells = []
            for task in tasks:
                gaps = []
                for strength in report:
                    values = [run["tasks"][task][metric] for run in report[strength][variant]]
                    best = report[strength]["oracle"][0]["tasks"][task][metric]
                    gaps.append(best - np.mean(values))
                    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
                    cells.append(f"{np.mean(values):.4f}{spread}")
                if len(report) > 1:
                    cells.append(f"{gaps[-1] - gaps[0]:+.4f}" if variant != "oracle" else "")
            table.add_row(variant, *cells)
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
