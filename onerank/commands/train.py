"""`onerank train`: trains the model of a spec without TFX; prepares its data first where `prepare` has not run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onerank.commands.prepare import parser, prepared_folder, require_libraries
from transform.errors import reports_user_errors
from transform.source_hash import source_hash

if TYPE_CHECKING:
    from transform.spec.ranking_spec import RankingSpec


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Trains, and keeps the weights and logs below the output folder.

    A training that was killed goes on from its checkpoint when the same command is given again, if spec, data and code
    are the same.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    options = parser("train", "Trains the model of a spec, without TFX. Prepares its data first.")
    options.add_argument("--seed", type=int, help="instead of `training.seed` in the spec")
    arguments = options.parse_args(argv)
    require_libraries("train")
    from trainer.training.check_settings import check_settings
    from trainer.training.trainer import train
    from transform.ingest.prepare import prepare
    from transform.spec.loading import load_spec

    spec = load_spec(arguments.spec).with_seed(arguments.seed)
    check_settings(spec)  # before the data are prepared, which takes long
    prepared = prepare(spec, arguments.data, prepared_folder(arguments.output))
    run = run_folder(arguments.output, spec.name)
    unfinished = run / "unfinished" / training_key(spec, prepared.folder)
    train_files, eval_files = (prepared.files("transformed", split) for split in ("train", "eval"))
    trained = train(spec, prepared.inputs, train_files, eval_files, str(run), str(unfinished))
    shutil.rmtree(run / "unfinished", ignore_errors=True)
    print(f"Trained: {run}; epoch {trained.best_epoch + 1} of {len(trained.epochs)} is kept.")
    return 0


def training_key(spec: RankingSpec, prepared: Path) -> str:
    """A hash of all that a training depends on: the spec, the folder of its prepared data, and the code it runs."""
    from trainer.training.training_code import chosen_names, training_code

    code = source_hash(training_code(*chosen_names(spec)), ("keras", "tensorflow"))
    return hashlib.sha256(f"{spec.to_json()}\n{prepared}\n{code}".encode()).hexdigest()[:12]


def run_folder(output: str, name: str) -> Path:
    """Where the training of a spec keeps its weights and logs below an output folder."""
    return Path(output) / "training" / name
