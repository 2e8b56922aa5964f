"""What a request costs when a OneRank is served: `python -m benchmarks.serving.request_cost --help`.

One user with a long history and N candidates; the exported signatures are called in this process and through the
embedded server. What takes turns is compared by processor seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import httpx
import numpy as np
import tensorflow as tf

from benchmarks import measure
from benchmarks.measure import Ratio, Times, add_data_arguments
from benchmarks.serving import load
from benchmarks.serving.server_process import ServerProcess
from benchmarks.serving.sized_requests import export, joined, random_model, sized
from serving.client.grpc_transport import GrpcTransport
from serving.client.rest_transport import RestTransport
from serving.client.transport import Transport
from serving.export.raw_inputs import raw_values
from serving.export.signatures import ENCODE_USER, RANK, RANK_WITH_USER_STATE
from tests.testing import serving_skew
from transform.errors import UserError
from transform.features import request_example
from transform.ingest.prepare import Prepared, prepare
from transform.spec.loading import load_spec
from transform.spec.model_sections import Model, Serving
from transform.spec.ranking_spec import RankingSpec

Row = dict[str, Any]
Call = Callable[[], Any]
Key = tuple[int, str]  # candidates, way

NAME = "ranking"
MODEL = Model(name="onerank", d=128, layers=4, heads=4)  # as in the benchmark of the training step
REPEATED = "history repeated"
ROWS = 100  # requests of one candidate that are scored in one call: scores of a history take 4 MB each
SPELL = 0.05  # seconds that a way is called for before the next one's turn
JOINED = 500  # requests whose candidates and events make the long ones
FAR = 0.1  # the standard deviation of the skew's weights
OVERHEAD = 100  # candidates
LOADS = (0.3, 0.5, 0.7)  # of the highest rate
TIMEOUT = 60.0


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        candidates: dict. Of each history's length, the numbers of candidates.
        repeated: tuple of int. The numbers of candidates for which the history is repeated, too.
        history: int. The length there, and for what is asked through the server.
        requests: int. Of data, for the skew.
        rounds: int. The most.
        seconds: float. For a history's rounds, and for each level of load.
    """

    candidates: dict[int, tuple[int, ...]]
    repeated: tuple[int, ...]
    history: int
    requests: int
    rounds: int
    seconds: float


N = (16, 64, 256, 1024, 4096)
FULL = Sizes(
    candidates={50: N, 128: N, 512: tuple(sorted((*N, 50, 100, 500, 1000))), 2048: N},
    repeated=(50, 100, 500, 1000),
    history=512,
    requests=1000,
    rounds=100,
    seconds=60,
)
QUICK = replace(FULL, candidates={512: (50, 100, 500, 1000)}, repeated=(100, 500), requests=200, rounds=9, seconds=10)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the tables and writes the results; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    if arguments.tables:
        print(tables(json.loads(Path(arguments.tables).read_text())))
        return 0
    measure.set_threads(arguments.threads)
    try:
        prepared = prepare(load_spec(arguments.spec), arguments.data, Path(arguments.cache))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        results = measure_all(prepared, QUICK if arguments.quick else FULL, arguments.threads, Path(folder))
    print(tables(results))
    if arguments.output:
        measure.write_json(arguments.output, results)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.request_cost",
        description="Measures served requests: shared and repeated histories, kept user states, the server, skew.",
    )
    add_data_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="one history, few rounds: what the figures need")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow, for a request (default: %(default)s)")
    parser.add_argument("--tables", metavar="FILE", help="only print the tables of results that were written before")
    return parser.parse_args(argv)


def measure_all(prepared: Prepared, sizes: Sizes, threads: int, folder: Path, model: Model = MODEL) -> dict[str, Any]:
    """All that `--output` writes. `folder` is for what is exported on the way."""
    skew = measure_skew(prepared, sizes.requests, folder / "skew")
    served = Prepared(served_spec(prepared.spec, sizes, model), prepared.folder)
    request = joined(served.spec, _records(served, JOINED))
    warm_up = sized(served.spec, request, sizes.history, OVERHEAD)
    path = folder / NAME / "1"
    export(served, random_model(served, FAR), path, [request_example.encode(warm_up).SerializeToString()])
    direct = Direct(served.spec, path)
    inputs = raw_values(served.spec, warm_up)
    direct.warm_up(inputs)
    functions = _functions()
    rows = []
    for events, candidates in sizes.candidates.items():
        rows += measure_history(direct, partial(sized, served.spec, request, events), events, candidates, sizes)
        print(f"history {events}: done", flush=True)
    rows += measure_repeated(direct, partial(sized, served.spec, request, sizes.history), sizes)
    traced = len(_functions() - functions)
    log = folder / "server.log"
    flags = {"tensorflow_intra_op_parallelism": threads, "tensorflow_inter_op_parallelism": 1}
    with ServerProcess(path.parent, NAME, log, **flags) as server:
        through_server, highest = measure_server(direct, server, inputs, sizes)
        traced += _new_shapes(server.addresses["http"])
    rows += through_server
    return {
        "machine": measure.machine(),
        "versions": measure.versions("tensorflow", "keras", "numpy", "grpcio", "uvicorn"),
        "threads": threads,
        "commit": measure.commit(),
        "model": {**model.model_dump(mode="json"), "tasks": len(served.spec.tasks)},
        "highest_per_second": highest,
        "rows": rows,
        "skew": skew,
        "figures": find_figures(rows, skew, traced),
    }


# === Problems ===


def served_spec(spec: RankingSpec, sizes: Sizes, model: Model) -> RankingSpec:
    """The spec with a model of the given size, and with one history, as long as the longest."""
    history = next(sequence for sequence in spec.sequences if sequence.role == "history")
    update = {
        "model": model,
        "sequences": (history.model_copy(update={"length": max(sizes.candidates)}),),
        "serving": Serving(warmup_candidates=(OVERHEAD,)),
    }
    return spec.model_copy(update=update)


def _records(prepared: Prepared, most: int) -> list[bytes]:
    return list(tf.data.TFRecordDataset(prepared.files("raw", "test"), "GZIP").take(most).as_numpy_iterator())


class Direct:
    """An exported model's signatures, called in this process.

    Args:
        spec: RankingSpec.
        path: Path. The version's folder.
    """

    def __init__(self, spec: RankingSpec, path: Path):
        self.spec = spec
        self._loaded = tf.saved_model.load(str(path))

    def warm_up(self, raw: Mapping[str, Any]) -> None:
        """Calls each signature that is measured once."""
        self.bind(RANK, raw)()
        self.bind(RANK_WITH_USER_STATE, {**raw, **self.bind(ENCODE_USER, raw)()})()

    def bind(self, name: str, tensors: Mapping[str, Any]) -> Callable[[], dict[str, tf.Tensor]]:
        """A call of a signature on tensors that are ready."""
        function = self._loaded.signatures[name]
        inputs = {key: tf.constant(tensors[key]) for key in function.structured_input_signature[1]}
        return lambda: function(**inputs)

    def repeated(self, raw: Mapping[str, np.ndarray]) -> Callable[[], list[dict[str, tf.Tensor]]]:
        """A call that scores a request's candidates as if each were a request of its own, `ROWS` in a call."""
        features = {feature.name for feature in self.spec.candidate_features()}
        n = int(raw[request_example.CANDIDATE_COUNT][0])
        calls = []
        for start in range(0, n, ROWS):
            rows = min(ROWS, n - start)
            chunk = {
                key: np.swapaxes(values[:, start : start + rows], 0, 1)
                if key in features
                else np.repeat(values, rows, axis=0)
                for key, values in raw.items()
            }
            calls.append(self.bind(RANK, {**chunk, request_example.CANDIDATE_COUNT: np.ones(rows, np.int64)}))
        return lambda: [call() for call in calls]


# === Measurements ===


class Clocked:
    """A call, made again and again, whose every duration is kept.

    Args:
        call: function.
        cpu_elsewhere: function. The processor seconds that another process has used so far. Defaults to none.
    """

    def __init__(self, call: Call, cpu_elsewhere: Callable[[], float] = lambda: 0.0):
        self._call, self._elsewhere = call, cpu_elsewhere
        self._repeats = measure.repeats_for(call, SPELL)
        self.walls: list[float] = []

    def __call__(self) -> Times:
        """A spell."""
        before = self._elsewhere()
        times = measure.timed(self._once, self._repeats)
        return Times(times.cpu + (self._elsewhere() - before) / self._repeats, times.wall)

    def _once(self) -> None:
        self.walls.append(measure.timed(self._call).wall)


def measure_history(
    direct: Direct, request: Callable[[int], Any], events: int, candidates: Sequence[int], sizes: Sizes
) -> list[Row]:
    """Rows of `rank` and of `rank_with_user_state` for each number of candidates, and one of `encode_user`."""
    runs: dict[Key, Clocked] = {}
    for n in candidates:
        raw = raw_values(direct.spec, request(n))
        encode = direct.bind(ENCODE_USER, raw)
        runs[n, RANK] = Clocked(direct.bind(RANK, raw))
        runs[n, RANK_WITH_USER_STATE] = Clocked(direct.bind(RANK_WITH_USER_STATE, {**raw, **encode()}))
    runs[0, ENCODE_USER] = Clocked(encode)
    return _rows(events, runs, measure.interleaved(runs, sizes.rounds, sizes.seconds))


def measure_repeated(direct: Direct, request: Callable[[int], Any], sizes: Sizes) -> list[Row]:
    """Rows of `history repeated`. Its scores are another model's: candidates don't see each other."""
    runs: dict[Key, Clocked] = {}
    for n in sizes.repeated:
        raw = raw_values(direct.spec, request(n))
        runs[n, RANK] = Clocked(direct.bind(RANK, raw))
        runs[n, REPEATED] = Clocked(direct.repeated(raw))
    times = measure.interleaved(runs, min(sizes.rounds, 9), sizes.seconds)
    return [row for row in _rows(sizes.history, runs, times) if row["way"] == REPEATED]


def measure_server(
    direct: Direct, server: ServerProcess, inputs: Mapping[str, np.ndarray], sizes: Sizes
) -> tuple[list[Row], float]:
    """Rows of one request through the server, and under load; and the most requests a second."""
    transports = {"gRPC": GrpcTransport(server.addresses["grpc"]), "REST": RestTransport(server.addresses["http"])}
    asks = {way: _asks(transport, inputs) for way, transport in transports.items()}
    n = int(inputs[request_example.CANDIDATE_COUNT][0])
    runs: dict[Key, Clocked] = {(n, RANK): Clocked(direct.bind(RANK, inputs))}
    runs |= {(n, way): Clocked(ask, lambda: server.cpu_seconds) for way, ask in asks.items()}
    rows = _rows(sizes.history, runs, measure.interleaved(runs, sizes.rounds, sizes.seconds))
    (in_process,) = (row["median_ms"] for row in rows if row["way"] == RANK)
    rows = [{**row, "overhead_ms": row["median_ms"] - in_process} for row in rows if row["way"] != RANK]

    highest, _ = load.highest_rate(asks["gRPC"], sizes.seconds / 4)
    for share in LOADS:
        before = server.cpu_seconds
        walls = load.open_loop(asks["gRPC"], share * highest, sizes.seconds)
        cpu = (server.cpu_seconds - before) / len(walls)
        rows.append(_row(sizes.history, n, _at_load(share), walls, cpu))
    for transport in transports.values():
        transport.close()
    return rows, highest


def _at_load(share: float) -> str:
    return f"gRPC, {share:.0%} load"


def _asks(transport: Transport, inputs: Mapping[str, np.ndarray]) -> Call:
    metadata = transport.metadata(NAME, None, None, TIMEOUT)
    signature = metadata.signatures[RANK]
    chosen = {key: inputs[key] for key in signature.inputs}
    return lambda: transport.predict(NAME, metadata.version, RANK, signature, chosen, TIMEOUT)


def measure_skew(prepared: Prepared, requests: int, folder: Path) -> list[Row]:
    """How far every way to a score is from the Trainer's model, the spec's own with random weights."""
    model = random_model(prepared, FAR)
    export(prepared, model, folder / "1")
    loaded = tf.saved_model.load(str(folder / "1"))
    with ServerProcess(folder, NAME, folder.with_suffix(".log")) as server:
        return serving_skew.compare(prepared, model, loaded, NAME, server.addresses, requests)


def _functions() -> set[str]:
    """The functions that TensorFlow has traced in this process."""
    from tensorflow.python.eager import context  # there is no public way to count them

    return set(context.context().list_function_names())


def _new_shapes(address: str) -> int:
    """What the server counts as retraces: shapes of inputs that came first after warm-up."""
    page = httpx.get(f"{address}/monitoring/prometheus/metrics").text
    return round(sum(float(value) for value in re.findall(r"^serving_retraces{.*} (\S+)$", page, re.MULTILINE)))


# === Rows ===


def _rows(events: int, runs: Mapping[Key, Clocked], times: Mapping[Key, Sequence[Times]]) -> list[Row]:
    rows = []
    for (n, way), run in runs.items():
        row = _row(events, n, way, run.walls, statistics.median(t.cpu for t in times[n, way]))
        for column, other in (("over_rank", (n, RANK)), ("over_n100", (100, way))):
            if other in times:
                row[column] = asdict(Ratio.of(times[n, way], times[other]))
        rows.append(row)
    return rows


def _row(events: int, n: int, way: str, walls: Sequence[float], cpu: float) -> Row:
    median, p95, p99 = np.percentile(walls, [50, 95, 99])
    return {
        "history": events,
        "candidates": n,
        "way": way,
        "calls": len(walls),
        "median_ms": 1e3 * median,
        "p95_ms": 1e3 * p95,
        "p99_ms": 1e3 * p99,
        "cpu_ms": 1e3 * cpu,
        "candidates_per_second": n / median,
    }


# === Figures and tables ===


def find_figures(rows: Sequence[Row], skew: Sequence[Row], retraces: int) -> dict[str, float]:
    """The figures that targets are about; those of sizes that were not measured are left out."""
    # of the history that the server is asked about, the one measured last
    found = {(row["way"], row["candidates"]): row for row in rows if row["history"] == rows[-1]["history"]}
    figures: dict[str, float] = {}
    for n in (100, 500):
        if (REPEATED, n) in found:
            figures[f"serving.sharing.N{n}"] = found[REPEATED, n]["over_rank"]["median"]
    if (RANK_WITH_USER_STATE, 50) in found:
        figures["serving.cache_hit.N50"] = 1 / found[RANK_WITH_USER_STATE, 50]["over_rank"]["median"]
    if "over_n100" in found.get((RANK, 1000), {}):
        figures["serving.growth.N100_N1000"] = found[RANK, 1000]["over_n100"]["median"]
    through_server = {row["way"]: row for row in rows if row["way"] not in (RANK, RANK_WITH_USER_STATE, REPEATED)}
    loaded = through_server[_at_load(LOADS[-1])]
    return {
        **figures,
        "serving.max_abs_skew": max(row["difference"] for row in skew),
        "serving.retraces_after_warmup": retraces,
        "serving.p99_over_p50": loaded["p99_ms"] / loaded["median_ms"],
        "serving.rest_overhead_ms": through_server["REST"]["overhead_ms"],
        "serving.grpc_overhead_ms": through_server["gRPC"]["overhead_ms"],
    }


def tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    rows = results["rows"]
    lines = [measure.describe(results)]
    for history in dict.fromkeys(row["history"] for row in rows):
        lines += ["", f"**History of {history} events**", ""]
        lines += ["| N | way | calls | median ms | p95 | p99 | CPU ms | candidates/s | over rank | min / min | wall |"]
        lines += ["|---" * 11 + "|"]
        lines += [_line(row) for row in rows if row["history"] == history]
    lines += ["", "| way to a score | requests | candidates | largest difference | spread |", "|---" * 5 + "|"]
    for row in results["skew"]:
        numbers = f"{row['requests']} | {row['candidates']} | {row['difference']:.1e} | {row['spread']:.2f}"
        lines.append(f"| {row['way']} | {numbers} |")
    lines += ["", "| figure | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {figure:.3g} |" for name, figure in results["figures"].items())])


def _line(row: Row) -> str:
    times = " | ".join(f"{row[key]:.3g}" for key in ("median_ms", "p95_ms", "p99_ms", "cpu_ms"))
    over = row.get("over_rank")
    ratios = " | ".join(f"{over[key]:.2f}" if over else "-" for key in ("median", "least", "wall"))
    speed = f"{row['candidates_per_second']:,.0f}" if row["candidates"] else "-"
    return f"| {row['candidates'] or '-'} | {row['way']} | {row['calls']} | {times} | {speed} | {ratios} |"


if __name__ == "__main__":
    sys.exit(main())
