"""A server under load while versions come, and when things go wrong: `python -m benchmarks.serving.server_load --help`.

Clients ask as fast as they are answered, over gRPC and REST, with and without kept user states. Versions take turns
among models whose scores differ, and each answer is compared with the scores of the version that it says it is from: a
wrong, mixed or mistaken answer is seen. It must go on so when the server is killed, and when a broken version comes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import httpx
import numpy as np
import tensorflow as tf

from benchmarks import measure
from benchmarks.serving import load
from benchmarks.serving.load_clients import DEADLINE, Answer, LoadClients, faults
from benchmarks.serving.load_versions import LoadVersions
from benchmarks.serving.server_process import ServerProcess
from benchmarks.serving.sized_requests import joined, sized
from transform.errors import UserError
from transform.ingest.prepare import Prepared, prepare
from transform.spec.loading import load_spec

Row = dict[str, Any]

NAME = "ranking"
JOINED = 20  # requests of data that one of the load is made of
DOWN = 2.0  # seconds for which the killed server stays away
MOST_GROWTH = 10.0  # percent


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints the tables and writes the results; returns 1 when something that is asked for is not so."""
    arguments = _parse(argv)
    if arguments.tables:
        print(tables(json.loads(Path(arguments.tables).read_text())))
        return 0
    measure.set_threads(1)
    try:
        prepared = prepare(load_spec(arguments.spec), arguments.data, Path(arguments.cache))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        results = measure_all(prepared, 60 * arguments.minutes, arguments.swap_seconds, Path(folder))
    print(tables(results))
    if arguments.output:
        measure.write_json(arguments.output, results)
    return 0 if not missed(results) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.server_load",
        description="Keeps a server at its highest rate while versions come, kills it, and gives it broken versions.",
    )
    measure.add_data_arguments(parser)
    parser.add_argument("--minutes", type=float, default=10, help="of load with versions (default: %(default)s)")
    parser.add_argument("--swap-seconds", type=float, default=60, help="between versions (default: %(default)s)")
    parser.add_argument("--tables", metavar="FILE", help="only print the tables of results that were written before")
    return parser.parse_args(argv)


def measure_all(prepared: Prepared, seconds: float, swap_seconds: float, folder: Path) -> dict[str, Any]:
    """All that `--output` writes. `folder` is for models and versions."""
    requests = make_requests(prepared)
    versions = LoadVersions(prepared, requests, folder)
    versions.push()
    flags = {"tensorflow_intra_op_parallelism": 1, "tensorflow_inter_op_parallelism": 1}
    log = folder / "server.log"
    with ServerProcess(versions.base, NAME, log, file_system_poll_wait_seconds=1, **flags) as server:
        clients = LoadClients(versions, requests, server.addresses, NAME)
        try:
            highest, workers = load.highest_rate(clients.ask, max(1.0, seconds / 60))
            clients.take()
            rows, mishaps = [], []
            with clients.asking(workers):
                for number in range(max(1, round(seconds / swap_seconds))):
                    if number:
                        versions.push()
                    time.sleep(swap_seconds)
                    rows.append(_row(number * swap_seconds, clients.take(), swap_seconds, server.memory_mib))
                    print(json.dumps(rows[-1]), flush=True)
                mishaps.append(_killed(server, clients))
                for broken in (_cut_graph, _cut_weights):
                    mishaps.append(_broken_version(server, clients, versions, broken))
        finally:
            clients.close()
    clients.take()
    # At half time: in the first swaps, two versions at once take what they need.
    settled = rows[len(rows) // 2]["memory_mib"]
    return {
        "machine": measure.machine(),
        "versions": measure.versions("tensorflow", "keras", "numpy", "grpcio", "uvicorn"),
        "threads": 1,
        "commit": measure.commit(),
        "clients": workers,
        "rows": rows,
        "faults": mishaps,
        "figures": {
            "serving_load.highest_per_second": highest,
            **{f"serving_load.{name}": clients.totals[name] for name in ("answers", "failed", "wrong")},
            "serving_load.unanswered": clients.asked - clients.totals["answers"],
            "serving_load.swaps": len(rows) - 1,
            "serving_load.memory_growth_percent": 100 * (rows[-1]["memory_mib"] / settled - 1),
            "serving_load.seconds_without_answers": mishaps[0]["seconds_without_answers"],
        },
    }


def missed(results: dict[str, Any]) -> list[str]:
    """What is asked for and is not so."""
    figures, faults = results["figures"], results["faults"]
    asked = {
        **{name: figures[f"serving_load.{name}"] == 0 for name in ("failed", "wrong", "unanswered")},
        "every version answers": all(
            str(number + 1) in row["by_version"] for number, row in enumerate(results["rows"])
        ),
        "flat memory": figures["serving_load.memory_growth_percent"] < MOST_GROWTH,
        "faults are survived": all(fault["as_asked"] for fault in faults),
    }
    return [name for name, so in asked.items() if not so]


def make_requests(prepared: Prepared, count: int = 24) -> list[dict[str, Any]]:
    """Requests of 20 to 100 candidates of users with events, as request examples' lists."""
    spec = prepared.spec
    records = list(
        tf.data.TFRecordDataset(prepared.files("raw", "test"), "GZIP").take(count * JOINED).as_numpy_iterator()
    )
    parts = [records[number::count] for number in range(count)]
    sizes = np.linspace(20, 100, count).round().astype(int)
    return [sized(spec, joined(spec, part), 8 + n // 4, int(n)) for part, n in zip(parts, sizes, strict=True)]


# === Faults ===


def _killed(server: ServerProcess, clients: LoadClients) -> Row:
    """The server is killed, stays away and comes back; nobody tells the clients."""
    time.sleep(DOWN)
    clients.take()
    server.kill()
    time.sleep(DOWN)
    server.start()
    back = time.perf_counter()
    time.sleep(2 * DOWN)
    answers = clients.take()
    bad = faults(answers)
    return {
        "fault": "the server is killed and started again",
        "answers": len(answers),
        **bad,
        "seconds_without_answers": _longest_silence(answers),
        "as_asked": not any(bad.values()) and any(answer.at > back for answer in answers),
        "status": "-",
    }


def _broken_version(
    server: ServerProcess,
    clients: LoadClients,
    versions: LoadVersions,
    spoil: Callable[[Path], None],
    patience: float = 60,
) -> Row:
    """A version comes that can't be loaded."""
    clients.take()
    versions.push(spoil)
    status, end = "", time.monotonic() + DEADLINE
    while not status and time.monotonic() < end:
        time.sleep(0.5)
        status = _status(server, versions.pushed)
    time.sleep(2 * DOWN)
    answers = clients.take()
    bad = faults(answers)
    from_it = sum(answer.version == versions.pushed for answer in answers)
    return {
        "fault": (spoil.__doc__ or "").rstrip("."),
        "answers": len(answers),
        **bad,
        "seconds_without_answers": _longest_silence(answers),
        "as_asked": bool(status and answers) and not any(bad.values()) and not from_it,
        "status": status or "-",
    }


def _longest_silence(answers: Sequence[Answer]) -> float:
    """The most seconds between two answers; the deadline if there are none."""
    times = sorted(answer.at for answer in answers)
    return float(np.diff(times).max()) if len(times) > 1 else DEADLINE


def _cut_graph(path: Path) -> None:
    """A version comes whose graph is cut off."""
    _cut(path / "saved_model.pb")


def _cut_weights(path: Path) -> None:
    """A version comes whose weights are cut off."""
    _cut(next((path / "variables").glob("variables.data-*")))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _status(server: ServerProcess, version: int) -> str:
    """Why a version is not served, "" while nothing is said of it."""
    statuses = httpx.get(f"{server.addresses['http']}/v1/models/{NAME}").json()["model_version_status"]
    return next((s["status"]["error_message"] for s in statuses if int(s["version"]) == version), "")


# === Rows and tables ===


def _row(start: float, answers: Sequence[Answer], seconds: float, memory_mib: float) -> Row:
    median, p99 = np.percentile([answer.seconds for answer in answers], [50, 99]) if answers else (0.0, 0.0)
    return {
        "from_second": round(start),
        "answers": len(answers),
        "per_second": len(answers) / seconds,
        **faults(answers),
        "median_ms": 1e3 * median,
        "p99_ms": 1e3 * p99,
        "memory_mib": memory_mib,
        "by_version": dict(Counter(str(answer.version) for answer in answers)),
        "messages": sorted({answer.fault for answer in answers if answer.fault})[:3],
    }


def tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [measure.describe(results), ""]
    lines += ["| from second | answers/s | failed | wrong | median ms | p99 | server MiB | answers by version |"]
    lines += ["|---" * 8 + "|"]
    for row in results["rows"]:
        by_version = ", ".join(f"{version}: {count}" for version, count in row["by_version"].items())
        numbers = f"{row['per_second']:.0f} | {row['failed']} | {row['wrong']} | {row['median_ms']:.1f}"
        memory = f"{row['p99_ms']:.1f} | {row['memory_mib']:.0f}"
        lines.append(f"| {row['from_second']} | {numbers} | {memory} | {by_version} |")
    lines += ["", "| what happens | answers | failed | wrong | longest silence, s | status |", "|---" * 6 + "|"]
    for row in results["faults"]:
        numbers = f"{row['answers']} | {row['failed']} | {row['wrong']} | {row['seconds_without_answers']:.1f}"
        lines.append(f"| {row['fault']} | {numbers} | {row['status']} |")
    lines += ["", "| figure | |", "|---|---|"]
    lines += [f"| {name} | {figure:.3g} |" for name, figure in results["figures"].items()]
    return "\n".join([*lines, "", f"Not as asked: {', '.join(missed(results)) or 'nothing'}."])


if __name__ == "__main__":
    sys.exit(main())
