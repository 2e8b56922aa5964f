"""Models side by side on one problem, over seeds: `python -m benchmarks.quality.compare_models --help`.

Every run is stored as soon as it is there, so that a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import keras
import numpy as np
import tensorflow as tf
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.quality.request_flops import request_flops
from tfx_pipeline.metadata.code_version import code_version
from trainer.metrics import ranking_metrics
from trainer.training.cost import batch_cost
from trainer.training.trainer import predict, train
from transform.errors import SpecError, UserError
from transform.features.batching import count_labels
from transform.features.model_inputs import ModelInputs
from transform.ingest.prepare import Prepared, prepare
from transform.spec.loading import load_spec, parse_spec
from transform.spec.model_sections import Model
from transform.spec.ranking_spec import RankingSpec

METRICS = ("auc", "gauc")
VARIANT_KEYS = {"model", "training", "alone", "lightgbm", "aggregates"}
WIDTH_WITHOUT_TERMINAL = 180


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints the table; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_WITHOUT_TERMINAL)
    try:
        spec = load_spec(arguments.spec)
        variants = load_variants(spec, arguments.variants)
        prepared = prepare(spec, arguments.data, Path(arguments.output) / "prepared")
        results = run_all(prepared, variants, arguments.seeds, Path(arguments.output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(spec, results, console)
    with open(os.path.join(arguments.output, f"{spec.name}.json"), "w", encoding="utf-8") as file:
        json.dump({"versions": versions(), "runs": results}, file, indent=1)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.compare_models",
        description="Trains variants of a spec's model, each with several seeds, and prints mean and "
        "spread of their test metrics, parameters, FLOPs a request and training time.",
    )
    parser.add_argument("--spec", required=True, help="a ranking spec")
    parser.add_argument("--data", required=True, help="the folder of its data")
    parser.add_argument("--variants", required=True, help="a YAML file: by name, sections that replace the spec's")
    parser.add_argument("--output", required=True, help="a folder for results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Variant:
    """What is trained under a name.

    Attributes:
        spec: RankingSpec.
        alone: bool. Whether each task gets a model of its own.
        lightgbm: bool. Whether it is no model of the package but LightGBM, one classifier per task.
    """

    spec: RankingSpec
    alone: bool = False
    lightgbm: bool = False


def load_variants(spec: RankingSpec, path: str | Path) -> dict[str, Variant]:
    """Reads variants: by name `alone`, `lightgbm`, `model` and `training` to merge into the spec's, or `aggregates`.

    The aggregate features of a variant are a part of the spec's, so that all variants read the same prepared data; with
    an empty list it has none.
    """
    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    variants = {}
    for name, changes in content.items():
        if not isinstance(changes, dict) or set(changes) - VARIANT_KEYS:
            keys = ", ".join(sorted(VARIANT_KEYS))
            raise SpecError(f"{path}: {name}: some of {keys} are expected. Received: {changes}.")
        plain = json.loads(spec.to_json())
        model = changes.get("model", {})
        same_model = model.get("name", spec.model.name) == spec.model.name
        plain["model"] = {**(plain["model"] if same_model else {}), **model}
        plain["training"] = {**plain.get("training", {}), **changes.get("training", {})}
        plain["aggregates"] = changes.get("aggregates", plain.get("aggregates", []))
        parsed = parse_spec(json.dumps(plain), f"{path}: {name}")
        unknown = [f.name for f in parsed.aggregate_features() if f not in spec.aggregate_features()]
        if unknown:
            raise SpecError(
                f"{path}: {name}: aggregate features of the spec are expected, with its settings. "
                f"Received: {', '.join(unknown)}. Add them to the spec."
            )
        variants[name] = Variant(parsed, changes.get("alone", False), changes.get("lightgbm", False))
    return variants


def run_all(
    prepared: Prepared, variants: Mapping[str, Variant], seeds: Sequence[int], output: Path
) -> dict[str, list[dict[str, Any]]]:
    """Runs each variant with each seed, seeds first, so that all variants are seen early.

    A result is kept with its spec and a hash of the code, and is measured again when one of them is another.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    code = code_version("transform", "trainer")
    for seed in seeds:
        for name, variant in variants.items():
            folder = output / "runs" / prepared.folder.name / f"{name}-{seed}"
            stored = folder / "result.json"
            seeded = replace(variant, spec=variant.spec.with_seed(seed))
            key = [seeded.spec.to_json(), seeded.alone, seeded.lightgbm, code]
            result = json.loads(stored.read_text()) if stored.exists() else {}
            if result.get("key") != key:
                print(f"{name}, seed {seed}", flush=True)
                result = {"key": key, "versions": versions(), "seed": seed, **run_one(prepared, seeded, folder)}
                folder.mkdir(parents=True, exist_ok=True)
                unfinished = stored.with_suffix(".part")
                unfinished.write_text(json.dumps(result, indent=1))
                unfinished.replace(stored)
            results[name].append(result)
    return results


def run_one(prepared: Prepared, variant: Variant, folder: Path) -> dict[str, Any]:
    """Test metrics by task, parameters, FLOPs per request, seconds of training."""
    spec = variant.spec
    if variant.lightgbm:
        return _lightgbm(prepared, spec)
    if not variant.alone:
        return _train(prepared, spec, spec.task_names, folder)
    # one model per task
    alone = {task: _train(prepared, for_task(spec, task), (task,), folder / task) for task in spec.task_names}
    return {
        "tasks": {task: result["tasks"][task] for task, result in alone.items()},
        **{key: sum(result[key] for result in alone.values()) for key in ("parameters", "flops", "seconds")},
    }


def for_task(spec: RankingSpec, task: str) -> RankingSpec:
    """The spec for a model of one task: early stopping watches that task, and there is none to read."""
    if not isinstance(spec.model.settings.get("cross_task", ""), str):
        settings = {key: value for key, value in spec.model.settings.items() if key != "cross_task"}
        spec = spec.model_copy(update={"model": Model(name=spec.model.name, loss=spec.model.loss, **settings)})
    stopping = spec.training.early_stopping
    if stopping is None:
        return spec
    training = spec.training.model_copy(update={"early_stopping": stopping.model_copy(update={"task": task})})
    return spec.model_copy(update={"training": training})


def _train(prepared: Prepared, spec: RankingSpec, tasks: tuple[str, ...], folder: Path) -> dict[str, Any]:
    files = {split: prepared.files("transformed", split) for split in ("train", "eval", "test")}
    inputs = ModelInputs.from_spec(spec, prepared.transform_output.vocabulary_size_by_name).for_tasks(tasks)
    started = time.perf_counter()
    trained = train(spec, inputs, files["train"], files["eval"], str(folder))
    seconds = time.perf_counter() - started
    counts = count_labels(inputs, files["test"])
    candidates = round(counts.candidates / counts.requests)
    rows = predict(spec, trained.model, files["test"])
    return {
        "tasks": {task: {name: float(ranking_metrics.compute(name, rows[task])) for name in METRICS} for task in tasks},
        "eval": {task: trained.epochs[trained.best_epoch]["eval"][task]["auc"] for task in tasks},
        "best_epoch": trained.best_epoch,
        "parameters": trained.model.count_params(),
        "flops": request_flops(trained.model, candidates, 10**6),
        "cost": asdict(batch_cost(trained.model, spec.training.batch_requests, candidates, 10**6)),
        "seconds": seconds,
    }


def _lightgbm(prepared: Prepared, spec: RankingSpec) -> dict[str, Any]:
    from benchmarks.quality.lightgbm_baseline import evaluate_task, make_columns, read_rows, to_matrix

    splits = {split: read_rows(spec, str(prepared.folder / "raw" / split)) for split in ("train", "eval", "test")}
    columns = list(make_columns(spec, splits["train"]))
    matrices = {split: to_matrix(columns, rows) for split, rows in splits.items()}
    threads = os.cpu_count() or 1
    started = time.perf_counter()
    found = {
        task: evaluate_task(task, columns, matrices, splits, threads, spec.training.seed) for task in spec.task_names
    }
    seconds = time.perf_counter() - started
    return {
        "tasks": {task: {name: of_task[name] for name in METRICS} for task, of_task in found.items()},
        "seconds": seconds,
    }


# === The table ===


def print_table(spec: RankingSpec, results: Mapping[str, list[dict[str, Any]]], console: Console) -> None:
    """Mean and standard deviation over seeds."""
    seeds = max(len(runs) for runs in results.values())
    title = f"Test split of {spec.name}: mean ± standard deviation over {seeds} training seeds"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for task in spec.task_names:
        table.add_column(f"{task}\nAUC\nGAUC", justify="right")
    for name in ("parameters", "MFLOPs a\nrequest", "training\nseconds"):
        table.add_column(name, justify="right")
    for name, runs in results.items():
        cells = []
        for task in spec.task_names:
            of_task = {metric: [run["tasks"][task][metric] for run in runs] for metric in METRICS}
            cells.append("\n".join(_mean(values) for values in of_task.values()))
        flops = f"{runs[0]['flops'] / 1e6:.1f}" if "flops" in runs[0] else "-"
        size = f"{runs[0]['parameters']:,}" if "parameters" in runs[0] else "-"
        table.add_row(name, *cells, size, flops, f"{np.mean([run['seconds'] for run in runs]):.0f}", end_section=True)
    console.print(table)
    console.print(", ".join(f"{name} {version}" for name, version in versions().items()), highlight=False)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def versions() -> dict[str, Any]:
    """What the numbers were made with."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    sys.exit(main())
