"""Synthetic data sets whose truth is known: `python -m transform.datasets.synthetic --help`.

Writes what a user would bring (`log.csv.gz`, `users.csv.gz`, `items.csv.gz`, `past.csv.gz` and `spec.yaml`) and
`truth.csv.gz`, the true probability of every label: a row an impression, in the log's order. No file that the spec
names holds anything of the truth.

Three scenarios, each with one knob, the strength: 0 turns the scenario's effect off and leaves all else as it is. One
seed draws the same users, items, requests and noise at every strength, so that what one model gains on another can be
compared between strengths. `transform.datasets.synthetic_truth` states the truth as formulas:

    conflict   all tasks want the same (0), or the second what the first does not and the third something else (1)
    set        labels know the candidate alone (0) or also what else is in the request (1)
    history    labels know no history (0) or follow the share of topics in 120 earlier events (1)
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from transform.datasets.synthetic_draw import DAYS, FIRST_DAY_MS, Dataset, Sizes, generate
from transform.datasets.synthetic_truth import DEVICES, HOURS, SCENARIOS, TASKS, Array
from transform.errors import UserError, reports_user_errors

LABELS = ("viewed", "engaged", "ordered")
PAST_COLUMNS = ("viewed_items", "engaged_items", "ordered_items")


def write(
    folder: str | Path, scenario: str, strength: float, seed: int = 0, sizes: Sizes | None = None
) -> dict[str, dict[str, float]]:
    """Generates a data set and writes it, whole or not at all; equal arguments give equal bytes.

    Args:
        folder: str or Path. A folder that is not there yet, or empty.
        scenario: str. `conflict`, `set` or `history`.
        strength: float. From 0, no effect, to 1.
        seed: int. Defaults to `0`.
        sizes: Sizes or None. Defaults to those of `Sizes()`.

    Returns:
        Requests, impressions and the rate of each task's positives, by split.

    Raises:
        UserError: when an argument can't be used, or something lies in the folder.
    """
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"output: a new or empty folder is expected. Received: `{folder}`. Remove it, or name another.")
    dataset = generate(scenario, strength, seed, sizes)
    contents = {f"{name}.csv.gz": _csv(columns) for name, columns in _tables(dataset).items()}
    heading = f"# Synthetic: scenario {scenario}, strength {strength}, seed {seed}. The truth is in truth.csv.gz.\n"
    body = yaml.safe_dump(_spec(dataset), sort_keys=False, default_flow_style=None, width=120)
    contents["spec.yaml"] = (heading + body).encode()
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        for name, content in contents.items():
            (beside / name).write_bytes(content)
        beside.rename(target)
    except OSError as error:
        raise UserError(f"output: a folder that can be written is expected. Received: {error}.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return dataset.counts()


def _tables(dataset: Dataset) -> dict[str, dict[str, Sequence[Any]]]:
    """The columns of all csv files."""
    requests = dataset.requests
    user_id, item_id, request_id = (
        np.array([f"{letter}{n:0{len(str(count))}d}" for n in range(count)])
        for letter, count in (("u", dataset.sizes.users), ("i", dataset.sizes.items), ("r", len(dataset.day)))
    )
    row, place = np.nonzero(requests.mask)
    key = {"request_id": request_id[row], "user_id": user_id[requests.user[row]]}
    what = {"item_id": item_id[requests.items[row, place]], "day": dataset.day[row]}
    labels = dict(zip(LABELS, dataset.labels[row, place].astype(int).T, strict=True))
    chances = dataset.probabilities[row, place].T
    log = {
        **key,
        **what,
        "time_ms": dataset.start[row] + dataset.step[row] * place,
        "device": np.array(DEVICES)[requests.device[row]],
        "hour": np.array(HOURS)[requests.hour[row]],
        **labels,
    }
    names = item_id[dataset.past_items]
    past = {"user_id": user_id, "until_ms": np.full(len(user_id), FIRST_DAY_MS - 1), "shown_items": _lists(names)}
    for k, column in enumerate(PAST_COLUMNS):
        past[column] = _lists(names, dataset.past_labels[..., k])
    probabilities = {f"p_{task}": [f"{p:.6f}" for p in column] for task, column in zip(TASKS, chances, strict=True)}
    return {
        "log": log,
        "users": {"user_id": user_id, **_named(dataset.users, ("segment", "region"))},
        "items": {"item_id": item_id, **_named(dataset.items, ("topic", "format"))},
        "past": past,
        "truth": {**key, **what, **labels, **probabilities},
    }


def _lists(names: Array, chosen: Array | None = None) -> list[str]:
    """A row's names, or those chosen, as one text."""
    keep = np.ones(names.shape, bool) if chosen is None else chosen
    return [" ".join(row[kept]) for row, kept in zip(names, keep, strict=True)]


def _named(columns: Mapping[str, Array], categorical: Sequence[str]) -> dict[str, Any]:
    """Categories get names: `topic7` can't be taken for a number."""
    return {
        name: [f"{name}{value}" for value in column] if name in categorical else column
        for name, column in columns.items()
    }


def _csv(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """A gzipped csv file without the time of its making; no value needs quotes."""
    lines = [",".join(columns), *map(",".join, zip(*(map(str, column) for column in columns.values()), strict=True))]
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return packed.getvalue()


def _spec(dataset: Dataset) -> dict[str, Any]:
    """A complete spec; the model's settings are the caller's."""
    scenario, window = dataset.world.scenario, dataset.sizes.past_events
    feedback = dict(zip(TASKS, PAST_COLUMNS, strict=True))

    def categorical(name: str, dim: int, column: str | None = None) -> dict[str, Any]:
        return {"name": name, **({"column": column} if column else {}), "type": "categorical", "dim": dim}

    return {
        "name": f"synthetic_{scenario.name}",
        "data": {
            "impressions": {"files": ["log.csv.gz"]},
            "tables": {
                "user": {"files": ["users.csv.gz"], "key": "user_id"},
                "item": {"files": ["items.csv.gz"], "key": "item_id"},
            },
            "past": {
                "files": ["past.csv.gz"],
                "key": "user_id",
                "time": "until_ms",
                "sequences": {"shown": {"item": "shown_items"}, "liked": {"item": "engaged_items"}},
                "feedback": feedback,
            },
        },
        "request": {"id": "request_id", "time": "time_ms", "max_candidates": scenario.candidates[1]},
        "split": {"by": "day", **{split: list(days) for split, days in DAYS.items()}},
        "tasks": [{"name": task, "label": label} for task, label in zip(TASKS, LABELS, strict=True)],
        "score": "view^0.5 * engage * order^0.5",
        "features": {
            "user": [
                categorical("user", 16, "user_id"),
                categorical("segment", 4),
                categorical("region", 4),
                {"name": "age", "type": "numeric", "transform": "z"},
            ],
            "context": [categorical("device", 4), categorical("hour", 4)],
            "candidate": [
                categorical("item", 16, "item_id"),
                categorical("topic", 8),
                categorical("format", 4),
                {"name": "price", "type": "numeric", "transform": "log_z"},
                {"name": "quality", "type": "numeric", "transform": "z"},
            ],
        },
        "sequences": [
            {
                "name": "shown",
                "role": "history",
                "length": window if scenario.follow else min(50, window),
                "features": ["item", "topic", "price"],
                "feedback": list(TASKS),
            },
            {"name": "liked", "role": "anchor", "length": 10, "where": "engage", "features": ["item", "topic"]},
        ],
        "training": {
            "epochs": 6,
            "batch_requests": 64,
            "optimizer": {"learning_rate": 0.002},
            "early_stopping": {"task": "engage", "metric": "auc", "patience": 1},
        },
        "evaluation": {"slices": [[], ["device"]]},
    }


# === The command ===


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Writes a data set and prints its counts; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sizes)}
    counts = write(arguments.output, arguments.scenario, arguments.strength, arguments.seed, Sizes(**given))
    print(f"{'split':<6} {'requests':>9} {'impressions':>12}" + "".join(f" {task:>8}" for task in TASKS))
    for split, of_split in counts.items():
        rates = "".join(f" {of_split[task]:>8.4f}" for task in TASKS)
        print(f"{split:<6} {of_split['requests']:>9,} {of_split['impressions']:>12,}{rates}")
    print(f"Written: {arguments.output}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m transform.datasets.synthetic",
        description="Writes a synthetic ranking problem whose truth is known: log, tables, past, spec and truth.",
    )
    parser.add_argument("--scenario", required=True, help=f"one of {', '.join(SCENARIOS)}")
    parser.add_argument("--strength", type=float, default=1.0, help="of its effect, 0 to 1 (default: %(default)s)")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    for field in dataclasses.fields(Sizes):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=int, default=field.default, help="(default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
