"""A pipeline that is killed in every component: `python -m tests.testing.kill_matrix --help`.

One run is killed again and again, each time at another moment and started again at once, until it comes to its end.
What it leaves then is compared with what a run leaves that was left alone: the weights bit by bit, the metrics up to
rounding. Beam writes records in no fixed order, so a component that is run again may sum them in another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import absl.logging
import h5py
import numpy as np
import tensorflow as tf
import yaml
from rich.console import Console
from rich.table import Table

from transform.datasets.synthetic import write
from transform.datasets.synthetic_draw import Sizes
from transform.spec.loading import load_spec

NAME = "synthetic_conflict"
SIZES = Sizes(train_requests=320, eval_requests=80, test_requests=400, users=60, items=40, past_events=10)
ROUNDING = 1e-5
CHANGES = {  # of the generator's spec: 3 epochs of 20 steps
    "model": {"name": "onerank", "d": 16, "layers": 1, "heads": 2, "dropout": 0.1},
    "training": {
        "epochs": 3,
        "batch_requests": 16,
        "optimizer": {"learning_rate": 0.005},
        "early_stopping": {"task": "engage", "metric": "auc", "patience": 3},
        "gradients_every": 7,
        "checkpoint_every": 6,
    },
    "evaluation": {"gates": {"default": {"metric": "auc", "tolerance": 0.5, "minimum": 0.1}}},
}


@dataclass(frozen=True)
class Moment:
    """Where a process is killed: in a component, before (or after) the n-th call of a function.

    Attributes:
        component: str.
        text: str. What is going on then.
        function: str. `module:attribute`.
        nth: int. Counted from the component's start. Defaults to 1.
        after: bool. Whether the function is run before the process is killed. Defaults to `False`.
    """

    component: str
    text: str
    function: str
    nth: int = 1
    after: bool = False


_SHARDS = "apache_beam.io.filebasedsink:FileBasedSink.finalize_write"
_PUBLISH = "tfx.orchestration.portable.launcher:Launcher._publish_successful_execution"
_RESOLVED = "tfx.orchestration.portable.execution_publish_utils:publish_internal_execution"
_STEP = "trainer.training.gradient_probe:GradientProbe.before_step"
_DONE = "all written, not yet published"
MOMENTS = (  # in the order in which the components run: each start gets as far as the next one
    Moment("ImpressionExampleGen", "shards written, none in place", _SHARDS),
    Moment("ImpressionExampleGen", "two of three splits in place", _SHARDS, 3),
    Moment("ImpressionExampleGen", _DONE, _PUBLISH),
    Moment("SpecSchema", _DONE, _PUBLISH),
    Moment("LabelStatistics", _DONE, _PUBLISH),
    Moment("StatisticsGen", _DONE, _PUBLISH),
    Moment("ExampleValidator", _DONE, _PUBLISH),
    Moment("AnomalyGate", "data judged, not yet published", _PUBLISH),
    Moment("Transform", "shards written, not in place", _SHARDS),
    Moment("Transform", _DONE, _PUBLISH),
    Moment("Trainer", "before its first step", _STEP),
    Moment("Trainer", "first epoch, 2 steps after a checkpoint", _STEP, 9),
    Moment("Trainer", "evaluation of the first epoch", "trainer.metrics.ranking_metrics:compute", 2),
    Moment(
        "Trainer",
        "a checkpoint is written, not yet in place",
        "tensorflow.python.checkpoint.checkpoint_management:update_checkpoint_state_internal",
        2,
    ),
    Moment("Trainer", "last epoch", _STEP, 30),
    Moment("Trainer", "model saved, not yet in place", "tensorflow:saved_model.save", after=True),
    Moment("Trainer", _DONE, _PUBLISH),
    Moment("latest_blessed_model", "model found, not yet published", _RESOLVED),
    Moment("Evaluator", "shards written, not in place", _SHARDS),
    Moment("Evaluator", _DONE, _PUBLISH),
    Moment(
        "ServingValidator",
        "the server is up, all was asked",
        "tfx_pipeline.evaluation.serving_validation:_replay_warmup",
    ),
    Moment("ServingValidator", _DONE, _PUBLISH),
    Moment("AtomicPusher", "two files copied", "tfx.dsl.io.fileio:copy", 3),
    Moment("AtomicPusher", "version in place, not yet published", _PUBLISH),
)


@dataclass
class Row:
    """A start of the pipeline.

    Attributes:
        component: str. Where it was killed; empty for the start that came to its end.
        moment: str.
        killed: bool.
        seconds: float. Until then.
        done: list of str. The components that it ran to their end.
        cached: int. The components that it did not run again.
        notes: list of str. What it said about the interruption before.
        problems: list of str. Half results that a server or the next start could take for whole.
    """

    component: str
    moment: str
    killed: bool
    seconds: float
    done: list[str] = field(default_factory=list)
    cached: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Kills and compares; returns 1 when something differs, is left over or was not killed where it should be."""
    arguments, of_runner = _parse(argv)
    if arguments.moment is not None:
        return run_to(MOMENTS[arguments.moment], [*of_runner, "--output", arguments.output])
    output = Path(arguments.output)
    spec = _write_problem(output)
    console = Console(width=None if sys.stdout.isatty() else 200)
    absl.logging.set_verbosity(absl.logging.ERROR)
    alone = _start(spec, output / "alone", None)
    console.print(f"Left alone: {alone.seconds:.0f} s.", highlight=False)
    rows = []
    for number, moment in enumerate(MOMENTS):
        rows.append(_start(spec, output / "killed", number))
        console.print(f"{moment.component}: {moment.text}: {rows[-1].seconds:.0f} s.", highlight=False)
    rows.append(_start(spec, output / "killed", None))
    expected, received = (_end_state(output / folder) for folder in ("alone", "killed"))
    differences = [name for name in expected if not _same(expected[name], received[name])]
    left = leftovers(output / "killed", NAME) + rows[-1].problems
    console.print(_table(rows))
    console.print(f"Compared: {', '.join(expected)}.", highlight=False)
    console.print(f"Different: {', '.join(differences) or 'nothing'}. Left over: {', '.join(left) or 'nothing'}.")
    report = {"alone": asdict(alone), "starts": [asdict(row) for row in rows], "expected": expected}
    report |= {"received": received, "differences": differences, "left_over": left}
    (output / "kill_matrix.json").write_text(json.dumps(report, indent=1))
    failed = differences or left or not all(row.killed for row in rows[:-1]) or any(row.problems for row in rows)
    return int(bool(failed))


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.testing.kill_matrix",
        description="Kills a small pipeline in every component, starts it again, and compares where it ends.",
    )
    parser.add_argument("--output", required=True, help="a new or empty folder for data, runs and kill_matrix.json")
    parser.add_argument("--moment", type=int, help=argparse.SUPPRESS)
    return parser.parse_known_args(argv)


def _write_problem(output: Path) -> Path:
    write(output / "data", "conflict", 1.0, sizes=SIZES)
    content = yaml.safe_load((output / "data" / "spec.yaml").read_text())
    spec = output / "spec.yaml"
    spec.write_text(yaml.safe_dump({**content, **CHANGES}))
    load_spec(spec)
    return spec


# === Killing ===


def run_to(moment: Moment, argv: list[str]) -> int:
    """Runs the pipeline in this process, which is killed at the moment."""
    from tfx.orchestration.portable.launcher import Launcher

    from tfx_pipeline.runners import local

    launch = Launcher.launch

    def armed(launcher: Launcher) -> Any:
        if launcher._pipeline_node.node_info.id == moment.component:
            place, _, name = moment.function.rpartition("." if "." in moment.function.split(":")[1] else ":")
            owner = pkgutil.resolve_name(place)
            setattr(owner, name, _deadly(getattr(owner, name), moment))
        return launch(launcher)

    Launcher.launch = armed
    return local.main(argv)


def _deadly(function: Callable[..., Any], moment: Moment) -> Callable[..., Any]:
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment.nth:
            if moment.after:
                function(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return counted


def _start(spec: Path, output: Path, number: int | None) -> Row:
    """Starts the pipeline, to be killed at a moment or to come to its end."""
    killed_at = ["tests.testing.kill_matrix", "--moment", str(number)]
    program = ["tfx_pipeline.runners.local"] if number is None else killed_at
    arguments = ["--spec", str(spec), "--data", str(spec.parent / "data")]
    started = time.time()
    process = subprocess.run(
        [sys.executable, "-m", *program, *arguments, "--output", str(output)], capture_output=True, text=True
    )
    killed = process.returncode == -signal.SIGKILL
    if process.returncode and not killed:
        raise RuntimeError(f"{program}: it ended with {process.returncode}\n{process.stdout}{process.stderr}")
    states = re.findall(r"^  (\w+): (done|cached), \d+ s$", process.stdout, re.MULTILINE)
    return Row(
        component="" if number is None else MOMENTS[number].component,
        moment="to its end" if number is None else MOMENTS[number].text,
        killed=killed,
        seconds=round(time.time() - started, 1),
        done=[node for node, state in states if state == "done"],
        cached=sum(state == "cached" for _, state in states),
        notes=re.findall(r"^  note: (.*)$", process.stdout, re.MULTILINE),
        problems=_half_models(output),
    )


# === Comparing ===


def _half_models(output: Path) -> list[str]:
    """Versions that a server would load and that are not whole."""
    models = {_variables(path) for path in output.glob(f"pipeline/{NAME}/Trainer/model/*/Format-Serving")}
    versions = [path for path in output.glob(f"serving/{NAME}/*") if path.name.isdigit()]
    return [f"{path.name} is not whole" for path in versions if _variables(path) not in models]


def _variables(model: Path) -> str:
    """A hash of the variables of a SavedModel."""
    reader = tf.train.load_checkpoint(str(model / "variables" / "variables"))
    names = sorted(reader.get_variable_to_shape_map())
    return _digest(
        (name, np.asarray(reader.get_tensor(name)).tobytes()) for name in names if "CHECKPOINTABLE" not in name
    )


def _digest(content: Any) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def _end_state(output: Path) -> dict[str, Any]:
    """What a run leaves, as far as it should not depend on interruptions."""
    from tfx_pipeline.evaluation.eval_config import load_failures, load_metrics
    from tfx_pipeline.metadata.runs import RunReader

    run = RunReader(str(output / "metadata" / f"{NAME}.db"), NAME).newest()
    folder = Path(run["Trainer"].output("model_run").uri)
    evaluation = run["Evaluator"].output("evaluation").uri
    versions = list((output / "serving" / NAME).iterdir())
    return {
        "served weights": [_variables(path) for path in versions],
        "best weights": _h5(folder / "checkpoints" / "best.weights.h5"),
        "last weights": _h5(folder / "checkpoints" / "last.weights.h5"),
        "training.json": json.loads((folder / "training.json").read_text()),
        "gradients.json": json.loads((folder / "gradients.json").read_text()),
        "TensorBoard": _scalars(folder / "logs"),
        "test metrics": {str(place): values for place, values in load_metrics(evaluation).candidate.items()},
        "failed gates": [str(failure) for failure in load_failures(evaluation)],
        "blessed": run["Evaluator"].output("blessing").get_int_custom_property("blessed"),
        "versions": len(versions),
        "counts": json.loads((Path(run["ImpressionExampleGen"].output("examples").uri) / "counts.json").read_text()),
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two states are equal; numbers up to rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _h5(path: Path) -> str:
    parts: list[tuple[str, bytes]] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: parts.append((name, item[()].tobytes())) if hasattr(item, "dtype") else None)
    return _digest(sorted(parts))


def _scalars(folder: Path) -> list[tuple[str, int, float]]:
    logged = []
    for path in folder.glob("events.out.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            logged += [(v.tag, event.step, float(tf.make_ndarray(v.tensor))) for v in event.summary.value]
    return sorted(logged, key=lambda entry: entry[:2])


def leftovers(output: Path, name: str) -> list[str]:
    """What killed runs of a pipeline left behind and nobody cleared."""
    from ml_metadata import metadata_store
    from tfx.orchestration import metadata

    path = str(output / "metadata" / f"{name}.db")
    store = metadata_store.MetadataStore(metadata.sqlite_metadata_connection_config(path))
    complete = {str(e.id) for e in store.get_executions() if e.last_known_state == e.COMPLETE}
    open_ids = [str(e.id) for e in store.get_executions() if e.last_known_state == e.RUNNING]
    root = output / "pipeline" / name
    folders = [path for path in root.glob("*/*/*") if path.name.isdigit() and path.name not in complete]
    folders += root.glob("*/.system/executor_execution/*/.temp/*")
    folders += root.glob("*/.system/stateful_working_dir/*")
    folders += output.glob(f"checkpoints/{name}/*")
    folders += [path for path in output.rglob("*unfinished*")]
    return [f"execution {number} still runs" for number in open_ids] + [str(p.relative_to(output)) for p in folders]


def _table(rows: Sequence[Row]) -> Table:
    """Each kill, and what the start after it did."""
    table = Table(title="One run, killed at each of these moments and started again", title_justify="left")
    for column in ("killed in", "when", "then cached", "then done", "then noted", "problems"):
        table.add_column(column, justify="right" if column == "then cached" else "left")
    for row, then in zip(rows, rows[1:], strict=False):
        cells = [row.component, row.moment, str(then.cached), ", ".join(then.done), "\n".join(then.notes)]
        table.add_row(*cells, ", ".join(row.problems + ([] if row.killed else ["was not killed"])))
    return table


if __name__ == "__main__":
    sys.exit(main())
