"""The kernels of structured attention beside each other and their rivals.

    python -m benchmarks.attention.compare_kernels --help

Speed: processor seconds of kernels that run in turn, as ratios. Memory: the forward pass of each kernel in a process of
its own. And how far every result, and gradient, is from one in float64 with a dense mask.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import numpy as np

from benchmarks import measure
from benchmarks.attention.kernels import DENSE_TENSORS, KERNELS, WITH_PROJECTIONS, build, expected
from benchmarks.attention.shapes import SHAPES, SWEEP, Shape
from benchmarks.attention.worker import TORCH_KERNELS, Runner
from benchmarks.measure import Ratio, Times, Worker
from trainer.ops.fused import unavailable

OURS = ("fused", "portable", "portable XLA")
MEMORY_KERNELS = (*OURS, "tf", "torch")
QUICK_KERNELS = ("fused", "portable", "tf", "torch")
CHECKED_ROWS = 256  # queries of which results without gradients are compared, evenly spread
NO_TORCH = (
    "PyTorch is left out: this interpreter has none. Install it, here or in an environment of its own "
    "(pip install torch numpy), and name that interpreter with --torch-python."
)
PASSES = {False: "forward", True: "forward + backward"}

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the tables and writes the results; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    if arguments.tables:
        print(tables(json.loads(Path(arguments.tables).read_text())))
        return 0
    why_not = unavailable()
    if why_not:
        print(f"error: the fused attention can't be used here: {why_not}", file=sys.stderr)
        return 1
    measure.set_threads(arguments.threads)
    quick = arguments.quick
    results = measure_all(
        shapes=SHAPES,
        sweep=[SWEEP[0]] if quick else SWEEP,
        kernels=QUICK_KERNELS if quick else (*KERNELS, *TORCH_KERNELS),
        memory_kernels=("fused", "portable") if quick else MEMORY_KERNELS,
        torch_python=_torch_python(arguments.torch_python),
        threads=arguments.threads,
        rounds=3 if quick else arguments.rounds,
        seconds=5 if quick else 60,
    )
    print(tables(results))
    if arguments.output:
        measure.write_json(arguments.output, results)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention.compare_kernels",
        description="Measures the kernels of structured attention: speed, memory and exactness.",
    )
    parser.add_argument("--output", help="a JSON file for results; its folder is made (default: none is written)")
    parser.add_argument("--quick", action="store_true", help="few rounds and kernels: about two minutes")
    parser.add_argument("--rounds", type=int, default=9, help="the most a kernel runs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow and PyTorch (default: %(default)s)")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch (default: this one, if it has)")
    parser.add_argument("--tables", metavar="FILE", help="only print the tables of results that were written before")
    return parser.parse_args(argv)


def _torch_python(asked: str | None) -> str | None:
    """The interpreter for PyTorch, or None, and a line that says so."""
    python = asked or sys.executable
    try:
        found = subprocess.run([python, "-c", "import torch, numpy"], capture_output=True, text=True)
        why_not = found.stderr.strip().rpartition("\n")[2] if found.returncode else ""
    except OSError as error:
        why_not = str(error)
    if not why_not:
        return python
    if asked:
        raise SystemExit(f"error: {asked} can't import torch and numpy: {why_not}")
    print(NO_TORCH, flush=True)
    return None


def measure_all(
    shapes: Sequence[Shape],
    sweep: Sequence[Shape],
    kernels: Sequence[str],
    memory_kernels: Sequence[str],
    torch_python: str | None,
    threads: int,
    rounds: int,
    seconds: float,
    build: Callable[..., Any] = build,
) -> dict[str, Any]:
    """All there is in the results: see `main` for what stands where."""
    rows: list[Row] = []
    versions = measure.versions("tensorflow", "keras", "numpy")
    with ExitStack() as stack:
        torch = None
        if torch_python:
            torch = stack.enter_context(_worker(torch_python, "torch", threads))
            versions["torch"] = torch.facts["version"]
        for shape in shapes:
            for backward in (False, True) if shape.backward else (False,):
                rows += compare(shape, backward, kernels, torch, rounds, seconds, build)
        of_sweep = [kernel for kernel in kernels if kernel in (*OURS, "tf", "torch")]
        for shape in sweep:
            rows += compare(shape, False, of_sweep, torch, rounds, seconds / 3, build)
    for kernel in memory_kernels:
        if kernel in TORCH_KERNELS and not torch_python:
            continue
        library, python = ("torch", torch_python) if kernel in TORCH_KERNELS else ("tensorflow", sys.executable)
        with _worker(str(python), library, threads) as worker:
            for row in rows:
                shape = _shape_of(row, [*shapes, *sweep])
                if row["kernel"] == kernel and row["pass"] == PASSES[False] and not shape.backward and "cpu_ms" in row:
                    row["extra_mb"] = worker.ask(do="memory", kernel=kernel, shape=shape) / 1e6
        print(f"memory of {kernel}: done", flush=True)
    figures, missing = find_figures(rows)
    return {
        "machine": measure.machine(),
        "versions": versions,
        "threads": threads,
        "commit": measure.commit(),
        "rows": rows,
        "figures": figures,
        "missing": missing,
    }


def _worker(python: str, library: str, threads: int) -> Worker:
    environment = {**measure.MEMORY_ENVIRONMENT} if library == "tensorflow" else {}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    return Worker([python, "-m", "benchmarks.attention.worker", library, "--threads", str(threads)], environment)


def _shape_of(row: Row, shapes: Sequence[Shape]) -> Shape:
    return next(shape for shape in shapes if shape.name == row["shape"])


def compare(
    shape: Shape,
    backward: bool,
    kernels: Sequence[str],
    torch: Worker | None,
    rounds: int,
    seconds: float,
    build: Callable[..., Any] = build,
) -> list[Row]:
    """A row a kernel: its times, those over the baseline's, and how far it is from float64."""
    rows: dict[str, Row] = {}
    runs: dict[str, Callable[[], Times]] = {}
    runner = Runner(build)
    for kernel in kernels:
        if (kernel in TORCH_KERNELS and not torch) or (kernel == "torch causal" and shape.reads == "first"):
            continue
        rows[kernel] = {"shape": shape.name, "pass": PASSES[backward], "kernel": kernel}
        needed, free = DENSE_TENSORS.get(kernel, 0) * shape.dense_bytes * (1 + backward), _free_memory()
        if needed > 0.8 * free:
            rows[kernel]["skipped"] = f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
        elif kernel in TORCH_KERNELS:
            assert torch
            torch.ask(do="prepare", kernel=kernel, shape=shape, backward=backward)
            runs[kernel] = partial(_run_elsewhere, torch, kernel)
        else:
            runner.prepare(kernel, shape, backward)
            runs[kernel] = partial(runner.run, kernel)
    gemm = measure.gemm()
    gemm()
    times = measure.interleaved({**runs, "gemm": lambda: measure.timed(gemm)}, rounds, seconds)
    speed = measure.GEMM_FLOPS / measure.least(times["gemm"]).cpu
    of_references = _References(shape, backward)
    for kernel in runs:
        row, best = rows[kernel], measure.least(times[kernel])
        row |= {"rounds": len(times[kernel]), "cpu_ms": 1e3 * best.cpu, "wall_ms": 1e3 * best.wall}
        baseline = "fused + projections" if kernel in WITH_PROJECTIONS else "fused"
        if baseline in runs:
            row["over_fused"] = asdict(Ratio.of(times[kernel], times[baseline]))
        if kernel == "tf" and "portable" in runs:
            row["over_portable"] = asdict(Ratio.of(times[kernel], times["portable"]))
        if kernel not in WITH_PROJECTIONS:
            row["gemm_share"] = shape.flops(backward) / best.cpu / speed
        received = _results_elsewhere(torch, kernel) if kernel in TORCH_KERNELS else runner.results(kernel)
        row["error"] = of_references.error(kernel, received)
    if torch:
        torch.ask(do="clear")
    print(f"{shape.name}, {PASSES[backward]}: {len(times['gemm'])} rounds", flush=True)
    return list(rows.values())


class _References:
    """Results in float64, made once for all kernels of the same inputs."""

    def __init__(self, shape: Shape, backward: bool):
        self._shape, self._backward = shape, backward
        self._rows = None if backward else np.unique(np.linspace(0, shape.tokens - 1, CHECKED_ROWS).astype(int))
        self._made: dict[bool, list[np.ndarray]] = {}

    def error(self, kernel: str, received: list[np.ndarray]) -> float:
        """The largest difference of results, and of gradients."""
        projections = kernel in WITH_PROJECTIONS
        if projections not in self._made:
            self._made[projections] = expected(kernel, self._shape, self._backward, self._rows)
        if self._rows is not None:
            received = [received[0].take(self._rows, axis=-2)]
        pairs = zip(received, self._made[projections], strict=True)
        return max(float(np.abs(one - other).max(initial=0)) for one, other in pairs)


def _run_elsewhere(worker: Worker, kernel: str) -> Times:
    return Times(*worker.ask(do="run", kernel=kernel))


def _results_elsewhere(worker: Worker | None, kernel: str) -> list[np.ndarray]:
    assert worker
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "results.npz")
        worker.ask(do="results", kernel=kernel, to=path)
        with np.load(path) as file:
            return list(file.values())


def _free_memory() -> int:
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


# === Figures and tables ===


def find_figures(rows: Sequence[Row]) -> tuple[dict[str, float], list[str]]:
    """The figures that targets are about, and a line for each that was not measured."""
    places = {(row["shape"], row["pass"], row["kernel"]): row for row in rows}
    forward, both = PASSES.values()

    def value(shape: str, of_pass: str, kernel: str, *keys: str) -> Any:
        found: Any = places.get((shape, of_pass, kernel), {})
        for key in keys:
            found = found.get(key, {})
        return found

    found = {
        "attention.A.fwdbwd.over_tf": value("A", both, "tf", "over_fused", "median"),
        "attention.B.fwdbwd.over_tf": value("B", both, "tf", "over_fused", "median"),
        "attention.C.fwd.over_tf": value("C", forward, "tf", "over_fused", "median"),
        "attention.B.fwd.over_torch": value("B", forward, "torch", "over_fused", "least"),
        "attention.B.fwdbwd.over_torch": value("B", both, "torch", "over_fused", "least"),
        "attention.C.extra_mb": value("C", forward, "fused", "extra_mb"),
        "attention.portable.C.over_dense": value("C", forward, "tf", "over_portable", "median"),
    }
    errors = [row["error"] for row in rows if row["kernel"] in OURS and "error" in row]
    if errors:
        found["attention.max_abs_error"] = max(errors)
    figures = {name: float(figure) for name, figure in found.items() if figure != {}}
    return figures, [f"{name}: its kernel was left out" for name in found if name not in figures]


def tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    rows, lines = results["rows"], [measure.describe(results)]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in rows if row["shape"] == shape]
        lines += ["", f"**{shape}**", "", "| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
        lines += ["| " + " | ".join(write(row) for write in _COLUMNS.values()) + " |" for row in of_shape]
    lines += ["", "| figure | |", "|---|---|"]
    lines += [f"| {name} | {figure:.3g} |" for name, figure in results["figures"].items()]
    return "\n".join([*lines, "", *(f"Not measured: {line}." for line in results["missing"])]).rstrip()


def _cell(*keys: str, form: str = "{:.3g}") -> Callable[[Row], str]:
    def write(row: Row) -> str:
        for key in keys:
            row = row.get(key, {})
        return form.format(row) if row != {} else "-"

    return write


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "kernel": lambda row: row["kernel"] + (f" (left out: {row['skipped']})" if "skipped" in row else ""),
    "pass": _cell("pass", form="{}"),
    "CPU ms": _cell("cpu_ms"),
    "wall ms": _cell("wall_ms"),
    "over fused": _cell("over_fused", "median", form="{:.2f}"),
    "min / min": _cell("over_fused", "least", form="{:.2f}"),
    "wall": _cell("over_fused", "wall", form="{:.2f}"),
    "of GEMM": _cell("gemm_share", form="{:.0%}"),
    "extra MB": _cell("extra_mb"),
    "largest error": _cell("error", form="{:.1e}"),
}


if __name__ == "__main__":
    sys.exit(main())
