"""Runs the pipeline on this machine: `run_pipeline`, or `onerank run --help`."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from typing import TYPE_CHECKING

from transform.environment import prepare_environment

prepare_environment()

import absl.logging
from rich.console import Console

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.metadata.run_lock import run_lock
from tfx_pipeline.runners.arguments import add_pipeline_arguments, beam_options
from transform.errors import PipelineError, reports_user_errors
from transform.spec.loading import load_spec

if TYPE_CHECKING:
    from tfx_pipeline.metadata.runs import ComponentRun, Run

WIDTH_WITHOUT_TERMINAL = 200


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pipeline and prints the table.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0 when the run finished (blessed or not), 1 when the user has something to correct.
    """
    _run(_parse(argv))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="onerank run",
        description="Trains, evaluates and pushes the ranking model that a spec describes, on this machine.",
    )
    add_pipeline_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="show the libraries' logs here, not only in the file")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> None:
    started = time.time()
    spec = load_spec(arguments.spec).with_seed(arguments.seed)
    options = beam_options(arguments.beam_args)
    config = PipelineConfig(spec, arguments.data, arguments.output, arguments.allow_anomalies, **options)
    run_pipeline(config, arguments.as_of, arguments.verbose)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.time() - started:.0f} s in all, peak memory {memory:.1f} GiB.")


def run_pipeline(config: PipelineConfig, as_of: str | None = None, verbose: bool = False, summary: bool = True) -> Run:
    """Runs the pipeline in this process and writes the report of the run.

    Args:
        config: PipelineConfig. Its folders may be relative to the working folder; its split bounds may be too, to a
            date.
        as_of: str, optional. The date that relative split bounds count from. Defaults to the log's last day.
        verbose: bool. Whether the libraries' logs stay on the terminal. Defaults to `False`: they go to a file.
        summary: bool. Whether the tables and the verdict are printed at the end. Defaults to `True`.

    Returns:
        The run; `tfx_pipeline.reporting.report_data.collect` reads what came of it.

    Raises:
        UserError: when the user has something to correct. What Beam and TFX hand on is found by
            `transform.errors.find_user_error`.
    """
    console = Console()
    if not sys.stdout.isatty():  # a file, a notebook
        console = Console(width=WIDTH_WITHOUT_TERMINAL, force_terminal=False, force_jupyter=False)
    spec, data, output = config.spec, os.path.abspath(config.data_dir), os.path.abspath(config.output_dir)
    log_path = os.path.join(output, "logs", time.strftime("%Y%m%d-%H%M%S.log"))
    _make_folders(output, os.path.dirname(log_path), os.path.join(output, "metadata"))
    with run_lock(output), _quiet(log_path, verbose):
        console.print(f"{spec.name}: {len(spec.tasks)} tasks, model {spec.model.name}, seed {spec.training.seed}")
        console.print(f"Log: {os.path.relpath(log_path)}", highlight=False)
        # Heavy imports come after the mistakes that can be told without them, and where their noise goes to the log.
        from transform.ingest.sources import resolve_sources
        from transform.ingest.split_dates import resolve_splits

        resolve_sources(spec, config.data_dir)
        spec = resolve_splits(spec, config.data_dir, as_of)
        if spec is not config.spec:
            splits = ", ".join(f"{name} {first} to {last}" for name, (first, last) in spec.split.ranges().items())
            console.print(f"Splits by {spec.split.by}: {splits}", highlight=False)
        return _execute(replace(config, spec=spec, data_dir=data, output_dir=output), summary, console)


def _execute(config: PipelineConfig, summary: bool, console: Console) -> Run:
    """Runs the pipeline and prints what came of it."""
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner

    from tfx_pipeline.metadata.interrupted import clear_interrupted
    from tfx_pipeline.metadata.runs import RunReader
    from tfx_pipeline.pipeline import create_pipeline
    from tfx_pipeline.reporting.report import write_report
    from tfx_pipeline.reporting.summary import print_summary, shown_path
    from trainer.training.check_settings import check_settings

    check_settings(config.spec)

    def reader() -> RunReader:
        return RunReader(config.metadata_path, config.spec.name)

    for node in clear_interrupted(config.metadata_path, config.pipeline_root):
        console.print(f"  note: {node} was interrupted; it is run again.", highlight=False)
    started = time.time()
    progress = _Progress(console, lambda: reader().newest())
    logging.getLogger("absl").addHandler(progress)
    logging.getLogger("onerank").addHandler(progress)
    try:
        LocalDagRunner().run(create_pipeline(config))
    finally:
        logging.getLogger("absl").removeHandler(progress)
        logging.getLogger("onerank").removeHandler(progress)
    console.print(f"Pipeline: {time.time() - started:.0f} s.", highlight=False)
    run = reader().find()
    if summary:
        print_summary(config.spec, run.components, console)
    report = write_report(run, config.output_dir)
    console.print(f"Report: {shown_path(report)}", highlight=False, soft_wrap=True)
    return run


def _make_folders(*paths: str) -> None:
    for path in paths:
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise PipelineError(f"--output: a folder that can be written is expected. Received: {error}.") from error


@contextmanager
def _quiet(log_path: str, verbose: bool) -> Iterator[None]:
    """Sends what libraries log, in Python and below it, to a file; with `verbose` it stays on the terminal."""
    root, verbosity = logging.getLogger(), absl.logging.get_verbosity()
    level = root.level
    # Saving a model sets absl's verbosity to what absl believes it is: without this line, it would fall silent then.
    absl.logging.set_verbosity(absl.logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if verbose:
                yield
            else:
                with _logged_to(log_path, root):
                    yield
        finally:
            absl.logging.set_verbosity(verbosity)
            root.setLevel(level)


@contextmanager
def _logged_to(log_path: str, root: logging.Logger) -> Iterator[None]:
    terminal, handlers = os.dup(2), root.handlers
    with open(log_path, "a", encoding="utf-8") as log, redirect_stderr(log):  # a notebook's stderr is not file 2
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            log.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            root.handlers = handlers


class _Progress(logging.Handler):
    """Prints one line per component (its name, its time, whether it was cached) and the notices of this project."""

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
