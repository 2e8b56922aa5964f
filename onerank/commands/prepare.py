"""`onerank prepare`: makes a log into training data with Beam and TensorFlow Transform, without TFX."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from transform.environment import prepare_environment
from transform.extras import require_extra

prepare_environment()


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the data of a spec, or finds that this was done before.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    parser = argparse.ArgumentParser(prog="onerank prepare", description="Makes a log into training data, without TFX.")
    arguments = add_arguments(parser).parse_args(argv)
    require_extra("train", "onerank.commands.prepare")
    with user_errors() as outcome:
        from transform.ingest.prepare import prepare
        from transform.spec.ranking_spec import RankingSpec

        prepared = prepare(RankingSpec.load(arguments.spec), arguments.data, prepared_folder(arguments.output))
        print(f"Prepared: {prepared.folder}")
    return outcome.code


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds what `prepare`, `train` and `export` share: by these they find one another's files."""
    parser.add_argument("--spec", required=True, help="the YAML file that describes the ranking problem")
    parser.add_argument("--data", required=True, help="the folder that the paths in the spec are relative to")
    parser.add_argument("--output", required=True, help="the folder to write; the same for prepare, train and export")
    return parser


def prepared_folder(output: str) -> Path:
    """Where prepared data lie below an output folder; makes it.

    Raises:
        DataError: when it can't be written.
    """
    from transform.errors import DataError

    folder = Path(output) / "prepared"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: a folder that can be written is expected. Received: {error}.") from error
    return folder


@contextmanager
def user_errors() -> Iterator[SimpleNamespace]:
    """Prints a user's mistake as one message; `code` of what it gives is then 1, and else 0. Keeps libraries quiet."""
    import absl.logging

    from transform.errors import find_user_error

    # What TensorFlow Transform says of Keras 3, and Beam of its own types, a user can't change.
    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    outcome = SimpleNamespace(code=0)
    try:
        yield outcome
    except Exception as error:
        message = find_user_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        outcome.code = 1
