"""KuaiRand-Pure in requests of a user and week: `python -m benchmarks.kuairand_weeks --help`.

A user's impressions of one day are two on average; of one week, about five, and some fifty. Models that read the whole
request have more to read there. The log covers one full week and four days of the next, so that a time-based eval split
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
from collections.abc import Sequence
from pathlib import Path

import yaml

TRAIN, EVAL, TEST = 1, 2, 3
EVAL_USERS = 5  # one user in so many


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder; returns 1 when it is there already."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kuairand_weeks",
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
        for path in source.glob(pattern):
            add_weeks(path, unfinished / path.name)
    spec["name"] = f"{spec['name']}_weeks"
    spec["request"]["group_by"] = ["user_id", "week"]
    spec["split"] = {"by": "part", "train": [TRAIN, TRAIN], "eval": [EVAL, EVAL], "test": [TEST, TEST]}
    (unfinished / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    os.replace(unfinished, output)
    return 0


def add_weeks(source: Path, target: Path) -> None:
    """Copies a log with `week`, the calendar week, and `part`, the split it falls into."""
    with gzip.open(source, "rt", newline="") as read, gzip.open(target, "wt", newline="") as written:
        rows = csv.DictReader(read)
        writer = csv.DictWriter(written, [*(rows.fieldnames or ()), "week", "part"])
        writer.writeheader()
        first_week = None
        for row in rows:
            week = datetime.datetime.strptime(row["date"], "%Y%m%d").isocalendar()[1]
            first_week = week if first_week is None else min(first_week, week)
            later = EVAL if zlib.crc32(row["user_id"].encode()) % EVAL_USERS == 0 else TEST
            writer.writerow({**row, "week": week, "part": TRAIN if week == first_week else later})


if __name__ == "__main__":
    sys.exit(main())
