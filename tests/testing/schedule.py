"""Starts of the pipeline on one output folder, one after the other, as on a schedule: made once for all tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.testing import small_problem
from tests.testing.repository import repository
from tfx_pipeline.metadata.runs import Run, RunReader

SERVED = {**small_problem.SPEC["evaluation"], "served_requests": 20}
UNSERVED = {**SERVED, "served_requests": 0}  # a server of its own takes its time
PACKAGES = ("transform", "trainer", "serving", "tfx_pipeline")
KILLED = """
import sys
from tests.testing.kill_matrix import Moment, run_to
sys.exit(run_to(Moment("Trainer", "", "trainer.training.gradient_probe:GradientProbe.before_step", 7), sys.argv[1:]))
"""


@dataclass(frozen=True)
class Start:
    """What a start of the pipeline came to.

    Attributes:
        code: int. What it ended with.
        stdout, stderr: str. What it printed.
        versions: list of str. What was pushed by then.
        checkpoints: list of str. The folders of checkpoints that are there.
        left_over: list of str. What a killed start leaves, and one that came to its end does not.
    """

    code: int
    stdout: str
    stderr: str
    versions: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def states(self) -> dict[str, str]:
        """Component -> done or cached, from the lines that the runner prints."""
        lines = [line.strip().split(": ") for line in self.stdout.splitlines() if line.startswith("  ")]
        return {line[0]: line[1].split(",")[0] for line in lines if len(line) == 2 and " s" in line[1]}


def run(spec: Path, data: Path, output: Path, *extra: str) -> Start:
    """The local runner in this process, which imports TFX once."""
    from tfx_pipeline.runners import local

    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = local.main(_arguments(spec, data, output, *extra))
    return Start(code, stdout.getvalue(), stderr.getvalue())


def run_from_shell(spec: Path, data: Path, output: Path, code: Path | None = None, program: str = "") -> Start:
    """The local runner, or a program that takes its arguments, in a process; the packages may lie in another folder."""
    root = code or repository()
    command = [sys.executable, *(["-c", program] if program else ["-m", "tfx_pipeline.runners.local"])]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command + _arguments(spec, data, output), cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    return Start(done.returncode, done.stdout, done.stderr)


def _arguments(spec: Path, data: Path, output: Path, *extra: str) -> list[str]:
    return ["--spec", str(spec), "--data", str(data), "--output", str(output), *extra]


def reported_runs(output: Path) -> list[Run]:
    """The runs of the small problem that came to their end, the oldest first."""
    reader = RunReader(str(output / "metadata" / "small.db"), "small")
    ids = sorted(re.sub(r"T(\d+)-(\d+)-", r"T\1:\2:", path.name) for path in (output / "reports" / "small").iterdir())
    return [reader.find(run_id) for run_id in ids]


class Schedule:
    """Starts on one output folder, each made when a test first asks for it or for one after it.

    Args:
        shared: function. The fixture.
    """

    def __init__(self, shared: Callable[[str, Callable[[Path], Any]], Path]):
        self._shared = shared
        self._folder = shared("schedule", lambda folder: small_problem.write_data(folder / "data"))
        self._output = self._folder / "out"

    @property
    def output(self) -> Path:
        """The output folder after all starts, so that nobody reads it while another start is being made."""
        self.start(list(STARTS)[-1])
        return self._output

    def start(self, name: str) -> Start:
        """A start by its name, one of `STARTS`."""
        for number, (step, make) in enumerate(STARTS.items()):
            noted = self._shared(f"schedule-{number}", partial(self._make, make)) / "start.json"
            if step == name:
                return Start(**json.loads(noted.read_text()))
        raise KeyError(name)

    def copy(self, folder: Path) -> Path:
        """A copy of the output folder that knows of its own artifacts alone, to be changed."""
        copied = Path(shutil.copytree(self.output, folder / "out"))
        with contextlib.closing(sqlite3.connect(copied / "metadata" / "small.db")) as store, store:
            store.execute("UPDATE Artifact SET uri = replace(uri, ?, ?)", (str(self.output), str(copied)))
        return copied

    def _make(self, make: Callable[[Path, Path, Path], Start], folder: Path) -> None:
        start = make(self._folder, self._folder / "data", self._output)
        pushed = self._output / "serving" / "small"
        versions = sorted(os.listdir(pushed)) if pushed.exists() else []
        (folder / "start.json").write_text(json.dumps(asdict(replace(start, versions=versions))))


def _spec(folder: Path, name: str, **changes: Any) -> Path:
    training = {**small_problem.SPEC["training"], "checkpoint_every": 4}
    return small_problem.write_spec(folder / f"{name}.yaml", **{"training": training, "evaluation": SERVED, **changes})


def _killed(folder: Path, data: Path, output: Path) -> Start:
    from tests.testing.kill_matrix import leftovers

    killed = run_from_shell(_spec(folder, "small"), data, output, program=KILLED)
    assert killed.code == -signal.SIGKILL, killed.stdout + killed.stderr
    killed = replace(killed, left_over=leftovers(output, "small"))
    (checkpoints,) = (output / "checkpoints" / "small").iterdir()
    for number in range(4):  # of trainings that were given up long ago
        old = Path(shutil.copytree(checkpoints, checkpoints.with_name(f"old-{number}")))
        os.utime(old, (number, number))
    return replace(killed, checkpoints=sorted(path.name for path in checkpoints.parent.iterdir()))


def _first(folder: Path, data: Path, output: Path) -> Start:
    from tests.testing.kill_matrix import leftovers

    code = _copied_code(folder / "with another model")
    another = code / "trainer" / "models" / "another"
    shutil.copytree(code / "trainer" / "models" / "din", another)
    for path in another.glob("*.py"):
        path.write_text(path.read_text().replace('"din"', '"another"').replace("models.din", "models.another"))
    first = _done(run_from_shell(_spec(folder, "small"), data, output, code=code))
    checkpoints = sorted(path.name for path in (output / "checkpoints" / "small").iterdir())
    for name in checkpoints:
        shutil.rmtree(output / "checkpoints" / "small" / name)
    return replace(first, checkpoints=checkpoints, left_over=leftovers(output, "small"))


def _second(folder: Path, data: Path, output: Path) -> Start:
    return _done(run(_spec(folder, "small"), data, output))


def _worse(folder: Path, data: Path, output: Path) -> Start:
    tasks = [{**task, "weight": 1e-9} if task["name"] == "save" else task for task in small_problem.SPEC["tasks"]]
    nothing_is_as_fast = {**SERVED, "max_latency_ratio": 1e-6}
    return _done(run(_spec(folder, "worse", tasks=tasks, evaluation=nothing_is_as_fast), data, output))


def _edited(folder: Path, data: Path, output: Path) -> Start:
    code = _copied_code(folder / "code")
    with (code / "trainer" / "models" / "onerank" / "model.py").open("a") as file:
        file.write("\n# an edit\n")
    return _done(run_from_shell(_spec(folder, "unserved", evaluation=UNSERVED), data, output, code=code))


def _copied_code(folder: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(repository() / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _without_a_test_split(folder: Path, data: Path, output: Path) -> Start:
    broken = Path(shutil.copytree(data, folder / "broken"))
    for path in broken.glob("log*.csv"):
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([header, *(line for line in lines if line.split(",")[2] < "7")]) + "\n")
    return run(_spec(folder, "small"), broken, output)


def _done(start: Start) -> Start:
    assert start.code == 0, start.stdout + start.stderr
    return start


STARTS = {
    "killed": _killed,
    "first": _first,
    "second": _second,
    "worse": _worse,
    "edited": _edited,
    "without a test split": _without_a_test_split,
}
