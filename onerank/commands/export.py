"""`onerank export`: writes what `onerank train` trained as a SavedModel that TF Serving serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from onerank.commands.prepare import parser, prepared_folder, require_libraries
from onerank.commands.train import run_folder
from transform.errors import DataError, reports_user_errors


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Writes a new version folder of the model.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    arguments = parser("export", "Writes what `onerank train` trained as a SavedModel.").parse_args(argv)
    require_libraries("export")
    from serving.export.exporter import export_model
    from trainer.models.registry import build_model
    from trainer.training.check_settings import check_settings
    from transform.features.transform_graph import TransformGraph
    from transform.ingest.prepare import prepare
    from transform.spec.loading import load_spec

    spec = load_spec(arguments.spec)
    weights = run_folder(arguments.output, spec.name) / "checkpoints" / "best.weights.h5"
    if not weights.exists():
        raise DataError(f"--output: trained weights are expected. Received: no {weights}. Run `onerank train` first.")
    check_settings(spec)  # before the data are prepared, which takes long
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
    return 0
