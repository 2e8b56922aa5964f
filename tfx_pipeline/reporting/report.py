"""The report and the model card of a run: `onerank report --help`."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transform.environment import prepare_environment

prepare_environment()

from transform.errors import PipelineError, reports_user_errors

if TYPE_CHECKING:
    from tfx_pipeline.metadata.runs import Run
    from tfx_pipeline.reporting.report_data import RunData

REPORT_FILE, CARD_FILE = "report.html", "model_card.json"


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of a run that is in an output folder.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    parser = argparse.ArgumentParser(
        prog="onerank report",
        description=f"Writes {REPORT_FILE} and {CARD_FILE} of a finished run to OUTPUT/reports/PIPELINE/RUN/, as the "
        "local runner does at the end of each run.",
    )
    parser.add_argument("--output", required=True, help="the folder that the pipeline was run with as --output")
    parser.add_argument("--pipeline", help="the name in the spec; needed where the folder holds several")
    parser.add_argument("--run", help="the run's id; an unknown one is answered with those there are (default: newest)")
    arguments = parser.parse_args(argv)
    for library in ("absl", "tensorflow"):  # they warn of things that a user can't change
        logging.getLogger(library).setLevel(logging.ERROR)
    pipeline, metadata_path = _find_pipeline(arguments.output, arguments.pipeline)

    from tfx_pipeline.metadata.runs import RunReader

    path = write_report(RunReader(metadata_path, pipeline).find(arguments.run), arguments.output)
    print(f"Report: {path}")
    return 0


def write_report(run: Run, output: str) -> str:
    """Writes the report and the model card of a finished run.

    Args:
        run: Run.
        output: str. The pipeline's output folder.

    Returns:
        The path of the report; the card lies beside it. Both appear whole or not at all.

    Raises:
        PipelineError: when the run was not finished, its artifacts are gone or the folder can't be written.
    """
    # Heavy, and not needed where a mistake can be told without.
    from tfx_pipeline.reporting.model_card import model_card
    from tfx_pipeline.reporting.report_data import collect
    from trainer.training.gradient_probe import write_json

    data = collect(run)
    card = model_card(data)
    html = render(data, card)
    folder = os.path.join(output, "reports", run.pipeline, run.id.replace(":", "-"))  # some systems refuse colons
    path, card_path = os.path.join(folder, REPORT_FILE), os.path.join(folder, CARD_FILE)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(f"{path}.unfinished", "w", encoding="utf-8") as file:
            file.write(html)
        write_json(f"{card_path}.unfinished", card)
        os.replace(f"{card_path}.unfinished", card_path)
        os.replace(f"{path}.unfinished", path)
    except OSError as error:
        raise PipelineError(f"--output: a folder that can be written is expected. Received: {error}.") from error
    return path


def render(data: RunData, card: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else.

    Args:
        data: RunData.
        card: dict. The run's model card.

    Returns:
        The page's text.
    """
    import jinja2

    from tfx_pipeline.evaluation import verdict
    from tfx_pipeline.reporting.summary import NOTED_COUNTS, serving_words, slice_order
    from transform.spec.metric_table import find_metric, names_of

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfx_pipeline"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, change=_change, utc=_utc, metric=lambda name: find_metric(name).title)
    return environment.get_template(REPORT_FILE).render(
        data=data,
        card=card,
        headline=verdict.headline(data),
        consequence=verdict.consequence(data),
        judgements=verdict.judge(data),
        is_better=verdict.is_better,
        shown_metrics=[name for name in data.metric_names if name not in names_of("count")],
        serving_words=serving_words,
        slice_name=verdict.slice_name,
        slices=sorted((place for place in data.metrics.candidate if place), key=slice_order),
        pictures=_pictures(data),
        noted_counts=[(name, data.counts[name]) for name in NOTED_COUNTS if name in data.counts],
        cached=[node for node, component in data.run.components.items() if component.cached],
        spec_json=json.dumps(card["spec"], indent=1),
    )


def _pictures(data: RunData) -> dict[str, Any]:
    """SVG texts: by task, and by name where all tasks are in one."""
    import markupsafe

    from tfx_pipeline.reporting import report_plots as plots

    def per_task(draw: Any, *curves: dict[str, Any]) -> dict[str, Any]:
        drawn = {task: draw(task, *(of.get(task) for of in curves)) for task in data.tasks if task in curves[0]}
        return {task: markupsafe.Markup(svg) for task, svg in drawn.items() if svg}

    def named(drawn: dict[str, str]) -> dict[str, Any]:
        return {name: markupsafe.Markup(svg) for name, svg in drawn.items() if svg}

    candidate, baseline = data.curves.candidate, data.curves.baseline
    epochs = data.training["epochs"] if data.training else []
    eval_metrics = dict.fromkeys(name for epoch in epochs for of_task in epoch["eval"].values() for name in of_task)
    groups = dict.fromkeys(name for entry in data.gradients for name in entry if name != "step")
    return {
        "roc": per_task(plots.roc, candidate, baseline),
        "calibration": per_task(plots.calibration, candidate, baseline),
        "scores": per_task(plots.score_distribution, candidate),
        "loss": per_task(plots.loss, data.losses),
        "epochs": named({metric: plots.epochs(data.training or {}, metric, data.tasks) for metric in eval_metrics}),
        "conflict": named({group: plots.conflict(data.gradients, group) for group in groups}),
        "norms": named({group: plots.norms(data.gradients, group, data.tasks) for group in groups}),
    }


def _find_pipeline(output: str, pipeline: str | None) -> tuple[str, str]:
    """The name of a pipeline in an output folder, and its ML Metadata file."""
    folder = os.path.join(output, "metadata")
    names = sorted(name[:-3] for name in os.listdir(folder) if name.endswith(".db")) if os.path.isdir(folder) else []
    if not names:
        raise PipelineError(
            f"{output}: an output folder of the pipeline, with metadata/*.db, is expected. Received: a folder without "
            "runs. Run the pipeline first, or give the --output that it was run with."
        )
    if pipeline is None and len(names) > 1 or pipeline is not None and pipeline not in names:
        raise PipelineError(
            f"--pipeline: one of {', '.join(names)} is expected. Received: {pipeline or 'nothing'}. Give one of them."
        )
    name = pipeline or names[0]
    return name, os.path.join(folder, f"{name}.db")


# === Texts ===


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _change(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _utc(time: float | datetime.datetime | None) -> str:
    if time is None:
        return "–"
    if isinstance(time, int | float):
        time = datetime.datetime.fromtimestamp(time, datetime.timezone.utc)
    return time.strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit(main())
