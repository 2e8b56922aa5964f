"""Runs the pipeline on this machine: `python -m tfx_pipeline.local_runner --help`."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transform.environment import prepare_environment

prepare_environment()

import absl.logging
from rich.console import Console

from tfx_pipeline.arguments import add_pipeline_arguments, beam_options
from tfx_pipeline.run_lock import run_lock
from transform.errors import PipelineError, find_user_error
from transform.spec import RankingSpec

if TYPE_CHECKING:
    from tfx_pipeline.config import PipelineConfig
    from tfx_pipeline.runs import ComponentRun

WIDTH_WITHOUT_TERMINAL = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pipeline and prints the table.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0 when the run finished (blessed or not), 1 when the user has something to correct.
    """
    arguments = _parse(argv)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_WITHOUT_TERMINAL)
    try:
        _run(arguments, console)
    except Exception as error:
        message = find_user_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.local_runner",
        description="Trains, evaluates and pushes the ranking model that a spec describes, on this machine.",
    )
    add_pipeline_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="show the libraries' logs here, not only in the file")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace, console: Console) -> None:
    started = time.time()
    spec = RankingSpec.load(arguments.spec).with_seed(arguments.seed)
    output = os.path.abspath(arguments.output)
    log_path = os.path.join(output, "logs", time.strftime("%Y%m%d-%H%M%S.log"))
    _make_folders(output, os.path.dirname(log_path), os.path.join(output, "metadata"))
    with run_lock(output), _quiet(log_path, arguments.verbose):
        console.print(f"{spec.name}: {len(spec.tasks)} tasks, model {spec.model.name}, seed {spec.training.seed}")
        console.print(f"Log: {os.path.relpath(log_path)}", highlight=False)
        # Heavy imports come after the mistakes that can be told without them, and where their noise goes to the log.
        from transform.as_of import resolve_splits
        from transform.sources import resolve_sources

        resolve_sources(spec, arguments.data)
        relative, spec = spec, resolve_splits(spec, arguments.data, arguments.as_of)
        if spec is not relative:
            splits = ", ".join(f"{name} {first} to {last}" for name, (first, last) in spec.split.ranges().items())
            console.print(f"Splits by {spec.split.by}: {splits}", highlight=False)

        from tfx_pipeline.config import PipelineConfig

        data = os.path.abspath(arguments.data)
        _execute(
            PipelineConfig(spec, data, output, arguments.allow_anomalies, **beam_options(arguments.beam_args)), console
        )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"{time.time() - started:.0f} s in all, peak memory {memory:.1f} GiB.", highlight=False)


def _execute(config: PipelineConfig, console: Console) -> None:
    """Runs the pipeline and prints what came of it."""
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner

    from tfx_pipeline.interrupted import clear_interrupted
    from tfx_pipeline.pipeline import create_pipeline
    from tfx_pipeline.report import write_report
    from tfx_pipeline.runs import RunReader
    from tfx_pipeline.summary import print_summary, shown_path

    def reader() -> RunReader:
        return RunReader(config.metadata_path, config.spec.name)

    def newest_run() -> dict[str, ComponentRun]:
        return reader().newest()

    for node in clear_interrupted(config.metadata_path, config.pipeline_root):
        console.print(f"  note: {node} was interrupted; it is run again.", highlight=False)
    started = time.time()
    progress = _Progress(console, newest_run)
    logging.getLogger("absl").addHandler(progress)
    logging.getLogger("onerank").addHandler(progress)
    try:
        LocalDagRunner().run(create_pipeline(config))
    finally:
        logging.getLogger("absl").removeHandler(progress)
        logging.getLogger("onerank").removeHandler(progress)
    console.print(f"Pipeline: {time.time() - started:.0f} s.", highlight=False)
    print_summary(config.spec, newest_run(), console)
    report = write_report(reader().find(), config.output_dir)
    console.print(f"Report: {shown_path(report)}", highlight=False, soft_wrap=True)


def _make_folders(*paths: str) -> None:
    for path in paths:
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise PipelineError(f"--output: a folder that can be written is expected. Received: {error}.") from error


@contextmanager
def _quiet(log_path: str, verbose: bool) -> Iterator[None]:
    """Sends what libraries log, in Python and below it, to a file; with `verbose` it stays on the terminal."""
    warnings.simplefilter("ignore")
    # Saving a model sets absl's verbosity to what absl believes it is: without this line, it would fall silent then.
    absl.logging.set_verbosity(absl.logging.INFO)
    if verbose:
        yield
        return
    terminal = os.dup(2)
    with open(log_path, "a", encoding="utf-8") as log:
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            root.removeHandler(handler)


class _Progress(logging.Handler):
    """Prints a line a component (its name, its time, whether it was cached) and the notices of this project."""

    def __init__(self, console: Console, newest_run: Callable[[], dict[str, ComponentRun]]):
        super().__init__(logging.INFO)
        self._console = console
        self._newest_run = newest_run
        self._started = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a line when a component ends, and every notice."""
        if record.name == "onerank":
            self._console.print(f"  note: {record.getMessage()}", highlight=False)
            return
        node = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        if record.msg == "Component %s is running.":
            self._started = time.time()
            if self._console.is_terminal:
                self._console.print(f"  {node} ...", highlight=False, end="\r")
        elif record.msg == "Component %s is finished.":
            component = self._newest_run().get(node)
            how = "cached" if component and component.cached and component.outputs else "done"
            self._console.print(f"  {node}: {how}, {time.time() - self._started:.0f} s", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
