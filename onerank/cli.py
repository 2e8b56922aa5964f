"""The command `onerank`: one name for the programs of the package, each imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from transform.errors import reports_user_errors

# Command: the module whose `main` it is, and one line of help. In the order of a project: from a log to a ranking.
COMMANDS = {
    "run": ("tfx_pipeline.runners.local", "run the pipeline on this machine: from a log to a pushed model"),
    "report": ("tfx_pipeline.reporting.report", "write the report and the model card of a run again"),
    "kubeflow": ("tfx_pipeline.runners.kubeflow", "compile the pipeline for Vertex AI or Kubeflow Pipelines"),
    "prepare": ("onerank.commands.prepare", "make a log into training data, without TFX"),
    "train": ("onerank.commands.train", "train the model of a spec, without TFX; prepares the log first"),
    "export": ("onerank.commands.export", "export what `train` trained as a SavedModel"),
    "score": ("serving.tools.score_log", "score a log with an exported model"),
    "aggregates": ("transform.ingest.aggregates.export", "export aggregate features as tables for a feature store"),
    "example": ("serving.tools.example_request", "make an example request for a served model"),
    "serve": ("tfx_pipeline.runners.serve", "serve the model that `run` pushed"),
    "server": ("serving.server.__main__", "serve any exported models, with TF Serving's API"),
    "rank": ("serving.client.__main__", "rank the candidates of a request with a served model"),
}


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: sequence of str, optional. The command and its arguments. Defaults to those of the process.

    Returns:
        The command's exit code; 1 when the user has something to correct, 2 for an unknown command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"error: unknown command `{command}`. Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[command][0]).main(rest)


def _help() -> str:
    lines = [f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: onerank COMMAND [options]",
            "",
            "Multi-task ranking, from raw impression logs to TF Serving.",
            "",
            *lines,
            "",
            "`onerank COMMAND --help` lists the options of a command.",
        ]
    )
