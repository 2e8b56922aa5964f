"""`onerank export`: writes what `onerank train` trained as a SavedModel that TF Serving serves."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from onerank.commands.prepare import add_arguments, prepared_folder, user_errors
from onerank.commands.train import run_folder
from transform.environment import prepare_environment
from transform.extras import require_extra

prepare_environment()


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a new version folder of the model.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    parser = add_arguments(argparse.ArgumentParser(prog="onerank export", description=__doc__.partition(": ")[2]))
    arguments = parser.parse_args(argv)
    require_extra("train", "onerank.commands.export")
    with user_errors() as outcome:
        _export(arguments)
    return outcome.code


def _export(arguments: argparse.Namespace) -> None:
    from serving.export.exporter import export_model
    from trainer.models.registry import build_model
    from transform.errors import DataError
    from transform.features.transform_graph import TransformGraph
    from transform.ingest.prepare import prepare
    from transform.spec.ranking_spec import RankingSpec

    spec = RankingSpec.load(arguments.spec)
    weights = run_folder(arguments.output, spec.name) / "checkpoints" / "best.weights.h5"
    if not weights.exists():
        raise DataError(f"--output: trained weights are expected. Received: no {weights}. Run `onerank train` first.")
    prepared = prepare(spec, arguments.data, prepared_folder(arguments.output))
    model = build_model(spec.model, prepared.inputs)
    try:
        model.load_weights(str(weights))
    except ValueError as error:
        raise DataError(
            f"{weights}: weights of this spec's model are expected. Received: {str(error).splitlines()[0]} Train again."
        ) from error
    path = Path(arguments.output) / "model" / spec.name / str(int(time.time()))
    export_model(spec, model, TransformGraph(prepared.transform_output.transform_savedmodel_dir), str(path))
    print(f"Exported: {path}")
