"""A small ranking problem with every kind of input, generated from a known truth.

`buy` follows from the item (its price, and what only its id tells) and the user's taste; `save` follows from the
feature `signal` alone; `share` is observed where `buy` is positive.
"""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path
from typing import Any

import yaml

USERS, ITEMS, DAYS = 160, 40, 8
DAY_MS = 86_400_000

SPEC: dict[str, Any] = {
    "name": "small",
    "data": {
        "impressions": {"files": ["log*.csv"]},
        "tables": {
            "user": {"files": ["users.csv"], "key": "uid"},
            "item": {"files": ["items.csv"], "key": "iid"},
        },
        "past": {
            "files": ["past.csv"],
            "key": "uid",
            "time": "until_ms",
            "sequences": {"seen": {"item": "seen_items"}},
            "feedback": {"buy": "bought_items"},
        },
        "outcomes": ["dwell_ms"],
    },
    "request": {"group_by": ["uid", "day"], "time": "time_ms", "max_candidates": 6},
    "split": {"by": "day", "train": [1, 5], "eval": [6, 6], "test": [7, 8]},
    "tasks": [
        {"name": "buy", "label": "bought"},
        {"name": "save", "label": "saved"},
        {"name": "share", "label": "shared", "observed_when": "buy"},
    ],
    "score": "buy * save^0.5",
    "features": {
        "user": [
            {"name": "user", "column": "uid", "type": "categorical", "vocabulary": {"top_k": 1000}, "dim": 8},
            {"name": "age", "type": "numeric", "transform": "z"},
            {"name": "income", "type": "numeric", "transform": "quantiles", "buckets": 4, "dim": 4},
        ],
        "context": [
            {"name": "device", "type": "categorical", "pick": "first", "dim": 4},
            {"name": "load", "type": "numeric", "transform": "identity", "pick": "first"},
        ],
        "candidate": [
            {"name": "item", "column": "iid", "type": "categorical", "vocabulary": "item", "dim": 8},
            {"name": "brand", "type": "categorical", "dim": 4},
            {"name": "tags", "type": "categorical_set", "separator": "|", "dim": 4},
            {"name": "price", "type": "numeric", "transform": "log_z"},
            {"name": "signal", "type": "numeric", "transform": "identity"},
            {"name": "maker", "column": "brand", "type": "categorical", "vocabulary": {"hash_buckets": 8}, "dim": 4},
            {"name": "shown_at", "column": "time_ms", "type": "time", "periods": ["day"], "utc_offset": -3.5},
        ],
    },
    "sequences": [
        {
            "name": "seen",
            "length": 12,
            "features": ["item", "brand", "price", "shown_at"],
            "feedback": ["buy", "share"],
        },
        {"name": "bought", "role": "anchor", "length": 5, "where": "buy", "features": ["item"]},
    ],
    "model": {"name": "onerank", "d": 16, "layers": 1, "heads": 2},
    "training": {
        "epochs": 6,
        "batch_requests": 32,
        "optimizer": {"learning_rate": 0.01},
        "early_stopping": {"task": "buy", "patience": 2},
    },
    "evaluation": {
        "slices": [[], ["device"], ["brand"], ["price"]],
        "gates": {
            "default": {"metric": "auc", "tolerance": 0.05, "minimum": 0.55, "min_positives": 30},
            "share": {"min_positives": 1000},  # a coin: reported, not gated
        },
    },
}

AGGREGATES: dict[str, Any] = {  # aggregate features of every group, and few others: each takes its time in Transform
    "aggregates": [
        {"keys": [["item"], ["uid"], ["device"]], "tasks": ["buy"], "windows": ["2d"]},
        {"keys": [["user", "brand"]], "tasks": ["share"], "windows": ["all"], "buckets": 4, "dim": 3},
    ],
    "features": {
        "user": SPEC["features"]["user"][:2],
        "context": SPEC["features"]["context"][:1],
        "candidate": [f for f in SPEC["features"]["candidate"] if f["name"] in ("item", "brand", "signal")],
    },
    "sequences": [{"name": "seen", "length": 12, "features": ["item", "brand"], "feedback": ["buy", "share"]}],
    "evaluation": {},
}


def write_spec(path: Path, **changes: Any) -> Path:
    """Writes the spec with some of its sections replaced."""
    path.write_text(yaml.safe_dump({**SPEC, **changes}, sort_keys=False))
    return path


def write_data(folder: Path, seed: int = 0) -> Path:
    """Writes log, tables and past as csv files."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    taste = [rng.gauss(0, 1) for _ in range(USERS)]
    quality = [rng.gauss(0, 1) + 3 * (i / ITEMS - 0.5) for i in range(ITEMS)]  # dear ones are good
    _write(
        folder / "users.csv",
        ["uid", "age", "income"],
        [[f"u{u}", "" if u % 11 == 0 else 20 + u % 50, 1000 * (u % 17)] for u in range(USERS)],
    )
    _write(
        folder / "items.csv",
        ["iid", "brand", "tags", "price"],
        [
            [f"i{i}", f"b{i % 5}", "|".join(f"t{j}" for j in range(i % 4)), "" if i % 13 == 0 else 10 * (i + 1)]
            for i in range(ITEMS)
        ],
    )
    _write(
        folder / "past.csv",
        ["uid", "until_ms", "seen_items", "bought_items"],
        [[f"u{u}", DAY_MS - 1, f"i{u % ITEMS} i{(u + 7) % ITEMS}", f"i{u % ITEMS}"] for u in range(0, USERS, 2)],
    )
    rows = []
    for day in range(1, DAYS + 1):
        for u in range(USERS):
            if rng.random() < 0.4:
                continue
            start = day * DAY_MS + rng.randrange(DAY_MS // 2)
            for n in range(rng.choice([1, 2, 3, 4, 9])):
                i, signal = rng.randrange(ITEMS), rng.gauss(0, 1)
                bought = rng.random() < _sigmoid(quality[i] + taste[u] * (1 if i % 5 < 2 else -1) - 0.5)
                saved = rng.random() < _sigmoid(3 * signal - 1)
                shared = bought and rng.random() < 0.4
                device, load = rng.choice(["phone", "desktop"]), f"{rng.random():.4f}"
                labels = [int(bought), int(saved), int(shared)]
                row = [f"u{u}", f"i{i}", day, start + 1000 * n, device, load, f"{signal:.4f}", *labels]
                rows.append([*row, rng.randrange(60_000)])
    header = ["uid", "iid", "day", "time_ms", "device", "load", "signal", "bought", "saved", "shared", "dwell_ms"]
    _write(folder / "log_a.csv", header, rows[: len(rows) // 2])
    _write(folder / "log_b.csv", header, rows[len(rows) // 2 :])
    return folder


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
