"""`onerank prepare`: makes a log into training data with Beam and TensorFlow Transform, without TFX."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from transform.environment import prepare_environment
from transform.errors import DataError, reports_user_errors
from transform.extras import require_extra

prepare_environment()


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the data of a spec, or finds that this was done before.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    arguments = parser("prepare", "Makes a log into training data, without TFX.").parse_args(argv)
    require_libraries("prepare")
    from transform.ingest.prepare import prepare
    from transform.spec.loading import load_spec

    prepared = prepare(load_spec(arguments.spec), arguments.data, prepared_folder(arguments.output))
    print(f"Prepared: {prepared.folder}")
    return 0


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser with what `prepare`, `train` and `export` share: by these they find one another's files."""
    made = argparse.ArgumentParser(prog=f"onerank {command}", description=description)
    made.add_argument("--spec", required=True, help="the YAML file that describes the ranking problem")
    made.add_argument("--data", required=True, help="the folder that the paths in the spec are relative to")
    made.add_argument("--output", required=True, help="the folder to write; the same for prepare, train and export")
    return made


def require_libraries(command: str) -> None:
    """Sees that the libraries are there, and silences what they say and a user can't change.

    TensorFlow Transform warns of Keras 3, and Beam of its own types.
    """
    require_extra(
        "train", f"onerank {command}", "apache_beam", "keras", "pyarrow", "tensorflow", "tensorflow_transform"
    )
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)


def prepared_folder(output: str) -> Path:
    """Where prepared data lie below an output folder; makes it.

    Raises:
        DataError: when it can't be written.
    """
    folder = Path(output) / "prepared"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: a folder that can be written is expected. Received: {error}.") from error
    return folder
