"""Compiles the pipeline for Vertex AI or Kubeflow Pipelines: `onerank kubeflow --help`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import yaml

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.runners.arguments import add_pipeline_arguments, beam_options
from transform.errors import PipelineError, reports_user_errors
from transform.spec.loading import load_spec

NOTES = {
    "vertex": "the baseline is the latest blessed model as TFX finds it, even one of other inputs or tasks.",
    "kubeflow": "no baseline, as Kubeflow Pipelines can't look up earlier models: gates hold values, not changes.",
}


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Compiles the pipeline and writes the file to submit.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    arguments = _parse(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFX warns of what a user can't change
    spec = load_spec(arguments.spec).with_seed(arguments.seed)
    if spec.split.date_format and arguments.as_of is None:
        raise PipelineError("--as_of: a date is expected for relative split bounds, as the log is not read here.")
    spec = spec.with_as_of(arguments.as_of)
    config = PipelineConfig(
        *(spec, arguments.data, arguments.output, arguments.allow_anomalies),
        **beam_options(arguments.beam_args),
        target=arguments.target,
    )
    job = compile_job(config, arguments.image)
    _write(job if config.target == "vertex" else job["pipelineSpec"], arguments.job)
    print(f"note: {NOTES[config.target]}")
    print(f"{config.pipeline_name}: {len(job['pipelineSpec']['root']['dag']['tasks'])} tasks, {arguments.job}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="onerank kubeflow",
        description="Compiles the pipeline that a spec describes into the file that Vertex AI or Kubeflow Pipelines "
        "runs. Paths of data and output are those that the containers see, as gs://bucket/folder.",
    )
    add_pipeline_arguments(parser)
    parser.add_argument("--image", required=True, help="the container image, built from the Dockerfile")
    parser.add_argument(
        "--target",
        choices=("vertex", "kubeflow"),
        default="vertex",
        help="vertex: a job in JSON for Vertex AI; kubeflow: a pipeline in YAML for Kubeflow Pipelines",
    )
    parser.add_argument("--job", required=True, help="the file to write")
    return parser.parse_args(argv)


def compile_job(config: PipelineConfig, image: str) -> dict[str, Any]:
    """Compiles the pipeline.

    Args:
        config: PipelineConfig. With the target `vertex` or `kubeflow`.
        image: str. The image that every component runs in.

    Returns:
        The pipeline job as plain values; `pipelineSpec` in it is what Kubeflow's tools read.
    """
    # Heavy imports come after the mistakes that can be told without them.
    from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import KubeflowV2DagRunner, KubeflowV2DagRunnerConfig

    from tfx_pipeline.pipeline import create_pipeline
    from trainer.training.check_settings import check_settings

    check_settings(config.spec)
    runner = KubeflowV2DagRunner(KubeflowV2DagRunnerConfig(default_image=image, use_pipeline_spec_2_1=True))
    return runner.run(create_pipeline(config), write_out=False)


def _write(content: dict[str, Any], path: str) -> None:
    unfinished = f"{path}.unfinished"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(unfinished, "w", encoding="utf-8") as file:
            if path.endswith((".yaml", ".yml")):
                yaml.safe_dump(content, file)
            else:
                json.dump(content, file, indent=1, sort_keys=True)
        os.replace(unfinished, path)
    except OSError as error:
        raise PipelineError(f"--job: a file that can be written is expected. Received: {error}.") from error


if __name__ == "__main__":
    sys.exit(main())
