"""KuaiRand-Pure in requests of a user and week: `python -m benchmarks.quality.kuairand_weeks --help`.

A user's impressions of one day are two on average; of one week, about five, and some fifty. Models that read the whole
request have more to read there. Some of it is hindsight: what was shown on Friday may follow from a click on Monday, so
a model that reads the set of candidates knows a little of what came of the first. Compare it with the same model
without candidate attention. The log covers one full week and four days of the next, so that a time-based eval split
would leave no week for training: the second week is split by user into eval (a fifth) and test.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

TRAIN, EVAL, TEST = 1, 2, 3
EVAL_USERS = 5  # one user in so many


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder; returns 1 when it is there already."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.kuairand_weeks",
        description="Writes a copy of KuaiRand-Pure whose log has the columns `week` and `part`, and a spec for it.",
    )
    parser.add_argument("--spec", required=True, help="the spec of the data by day, data/kuairand_dev.yaml")
    parser.add_argument("--data", required=True, help="the folder of its data")
    parser.add_argument("--output", required=True, help="a new folder for data and spec.yaml")
    arguments = parser.parse_args(argv)
    source, output = Path(arguments.data), Path(arguments.output)
    if output.exists():
        print(f"error: --output: a new folder is expected. Received: `{output}`. Remove it first.", file=sys.stderr)
        return 1
    with open(arguments.spec, encoding="utf-8") as file:
        spec = yaml.safe_load(file)
    unfinished = output.with_name(f".{output.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    for pattern in spec["data"]["impressions"]["files"]:
        paths = sorted(source.glob(pattern))
        first_week = min(week_of(row) for path in paths for row in read_rows(path))
        for path in paths:
            add_weeks(path, unfinished / path.name, first_week)
    spec["name"] = f"{spec['name']}_weeks"
    spec.pop("aggregates", None)  # most of a week's request lies after the day that they are as of
    spec["request"]["group_by"] = ["user_id", "week"]
    spec["split"] = {"by": "part", "train": [TRAIN, TRAIN], "eval": [EVAL, EVAL], "test": [TEST, TEST]}
    (unfinished / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    os.replace(unfinished, output)
    return 0


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a log."""
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def week_of(row: dict[str, str]) -> str:
    """The calendar week of a row, such as 2022-W17."""
    year, week, _ = datetime.datetime.strptime(row["date"], "%Y%m%d").isocalendar()
    return f"{year}-W{week:02d}"


def add_weeks(source: Path, target: Path, first_week: str) -> None:
    """Copies a log with `week`, the calendar week, and `part`, the split it falls into."""
    with gzip.open(target, "wt", newline="") as file:
        writer = None
        for row in read_rows(source):
            later = EVAL if zlib.crc32(row["user_id"].encode()) % EVAL_USERS == 0 else TEST
            row = {**row, "week": week_of(row), "part": str(TRAIN if week_of(row) == first_week else later)}
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
