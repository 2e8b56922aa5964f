"""What benchmarks of speed share: facts of the machine, rounds in turn, memory, other processes, results in JSON.

On a shared machine only ratios of runs taken in turn say something: what disturbs one run of a round disturbs the
others as well. Processor seconds of the process are compared, wall seconds are shown beside them. Nothing but the
standard library is imported here until TensorFlow is needed: other interpreters run this module too.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GEMM_SIZE = 1024
GEMM_FLOPS = 2 * GEMM_SIZE**3
# For a process whose memory is measured: what it frees goes back to the system at once, so that it counts anew. With
# oneDNN TensorFlow would keep it.
MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_ENABLE_ONEDNN_OPTS": "0"}

_INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "sve")


# === What was measured where ===


def machine() -> dict[str, Any]:
    """The processor, its cores (those that this process may use), memory and the instruction sets that matter here."""
    cpuinfo = Path("/proc/cpuinfo")
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in (cpuinfo.read_text() if cpuinfo.exists() else "").splitlines()
        if ":" in line
    )
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": facts.get("model name") or platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "instruction_sets": [name for name in _INSTRUCTIONS if name in flags],
    }


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of packages."""
    return {"python": platform.python_version()} | {package: metadata.version(package) for package in packages}


def commit() -> str:
    """The commit that is measured; one with changes ends in `+`. Results don't count as changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/*/*.json", ":!benchmarks/README.md")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def set_threads(threads: int) -> None:
    """Sets how many threads TensorFlow uses; before its first operation."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


# === Time ===


@dataclass(frozen=True)
class Times:
    """Seconds of one call.

    Attributes:
        cpu: float. Of the processor, all threads of the process.
        wall: float. Of the clock.
    """

    cpu: float
    wall: float


def timed(call: Callable[[], Any], repeats: int = 1) -> Times:
    """The mean times of some calls, none of which has to collect Python's garbage."""
    collects = gc.isenabled()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            call()
        return Times((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats)
    finally:
        if collects:
            gc.enable()


def repeats_for(call: Callable[[], Any], seconds: float) -> int:
    """How many calls take some seconds; calls twice, the first time to warm up."""
    call()
    return max(1, math.ceil(seconds / max(timed(call).wall, 1e-6)))


def gemm() -> Callable[[], Any]:
    """The matrix product [1024, 1024] x [1024, 1024] of TensorFlow, in float32: what speeds are shares of."""
    import tensorflow as tf

    left, right = tf.random.normal((2, GEMM_SIZE, GEMM_SIZE), seed=1)
    return lambda: tf.matmul(left, right)


def interleaved(
    runs: Mapping[str, Callable[[], Times]], rounds: int, seconds: float = math.inf
) -> dict[str, list[Times]]:
    """Runs all in turn, round by round: A B C A B C.

    Args:
        runs: mapping of str to a function that runs once and says what it took, see `timed` and `Worker`.
        rounds: int. The most rounds.
        seconds: float. No round begins later than this, save the first two. Defaults to no limit.

    Returns:
        The times of each, a round each.
    """
    found: dict[str, list[Times]] = {name: [] for name in runs}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= 2 and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            found[name].append(run())
    return found


@dataclass(frozen=True)
class Ratio:
    """How many times longer one takes than another.

    Attributes:
        median: float. The median over rounds of the ratio within a round, processor seconds.
        least: float. The least processor seconds of the one over the least of the other.
        wall: float. As `median`, of wall seconds.
    """

    median: float
    least: float
    wall: float

    @classmethod
    def of(cls, one: Sequence[Times], other: Sequence[Times]) -> Ratio:
        """The ratio of interleaved times."""
        pairs = list(zip(one, other, strict=True))
        return cls(
            median=statistics.median(a.cpu / b.cpu for a, b in pairs),
            least=least(one).cpu / least(other).cpu,
            wall=statistics.median(a.wall / b.wall for a, b in pairs),
        )


def least(times: Sequence[Times]) -> Times:
    """The least processor and the least wall seconds."""
    return Times(min(t.cpu for t in times), min(t.wall for t in times))


# === Memory ===


def extra_memory(call: Callable[[], int]) -> int:
    """The most bytes that a call holds beside what was there before it, and beside its results.

    For a process of its own, with `MEMORY_ENVIRONMENT`. The call is made twice, the second one counts: the first may
    compile.

    Args:
        call: function. Returns the bytes of its results, and keeps none of them.
    """
    call()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again from here
    before = _memory("VmRSS")
    results = call()
    return max(0, _memory("VmHWM") - before - results)


def _memory(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


# === Other processes ===


class Worker:
    """A program in another process that answers requests, each a line of JSON; see `serve`.

    It waits between them, and so uses no processor then. `facts` is what it said first.

    Raises:
        RuntimeError: when it ends without an answer. What it printed stands on the standard error.
    """

    def __init__(self, program: Sequence[str], environment: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        self.facts = self._answer()

    def ask(self, **request: Any) -> Any:
        """The answer to a request."""
        assert self._process.stdin
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A worker of the benchmark ended with {self._process.wait()}, without an answer.")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve(answer: Callable[..., Any], facts: Any = None) -> None:
    """The other side of a `Worker`: says its facts, then answers requests until there are no more.

    Args:
        answer: function. Called with the request's fields; what it returns must be fit for JSON.
        facts: what `Worker.facts` is to be. Defaults to None.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


# === Results ===


def describe(results: Mapping[str, Any]) -> str:
    """Where, with what and when results were measured, as a line of Markdown."""
    machine = results["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
        f"{', '.join(machine['instruction_sets'])}. "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + f". Threads: {results['threads']}. Commit {results['commit']}."
    )


def write_json(path: str | Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            json.dump(content, file, indent=1)
            file.write("\n")
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--spec`, `--data` and `--cache`, which a benchmark prepares its data by, and `--output`."""
    parser.add_argument("--spec", default="data/kuairand_mini.yaml", help="a ranking spec (default: %(default)s)")
    parser.add_argument("--data", default="data/kuairand_pure_mini", help="its data (default: %(default)s)")
    parser.add_argument("--cache", default="out/bench/prepared", help="for prepared data (default: %(default)s)")
    parser.add_argument("--output", help="a JSON file for results; its folder is made (default: none is written)")
