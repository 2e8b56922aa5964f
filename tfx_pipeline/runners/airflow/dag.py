"""An Airflow DAG that runs the pipeline on a schedule: copy this file into the DAGs folder. See docs/airflow.md."""

from __future__ import annotations

import datetime

from transform.environment import prepare_environment

prepare_environment()

from airflow import models
from airflow.exceptions import AirflowException

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.runners.airflow.settings import AirflowSettings
from tfx_pipeline.runners.airflow.tasks import add_tasks
from tfx_pipeline.runners.arguments import beam_options
from transform.errors import PipelineError, UserError
from transform.spec.loading import load_spec

AS_OF = "{{ (data_interval_end - macros.timedelta(days=1)) | ds }}"
"""The as-of date of a run, which Airflow fills in: the last whole day of its interval."""

VARIABLE = "onerank"  # a second DAG is a second copy of this file with another name here


def create_dag(settings: AirflowSettings) -> models.DAG:
    """Makes the DAG: a task for each component and one for the report.

    One task and one run at a time, as ML Metadata is one SQLite file. Neither TFX nor TensorFlow is imported: Airflow
    reads this file every few seconds. What can be wrong with the settings of the model is found by the first task.

    Args:
        settings: AirflowSettings.

    Returns:
        A DAG with the name of the spec.

    Raises:
        UserError: when the spec or the schedule is wrong.
    """
    spec = load_spec(settings.spec).with_seed(settings.seed)
    if spec.split.date_format:
        spec = spec.model_copy(update={"split": spec.split.model_copy(update={"as_of": AS_OF})})
    beam = beam_options(settings.beam_args)
    pipeline_config = PipelineConfig(spec, settings.data, settings.output, settings.allow_anomalies, **beam)
    arguments = {
        "description": f"Trains, evaluates and pushes the ranking model {spec.name}.",
        "schedule": settings.schedule,
        "start_date": datetime.datetime.combine(settings.start_date, datetime.time(), datetime.timezone.utc),
        "catchup": settings.catchup,
        "max_active_runs": 1,
        "max_active_tasks": 1,
        "default_args": {
            "retries": settings.retries,
            "retry_delay": datetime.timedelta(minutes=settings.retry_delay),
        },
    }
    try:
        dag = models.DAG(pipeline_config.pipeline_name, **arguments)
        dag.timetable.validate()
    except AirflowException as error:
        raise PipelineError(
            f"Airflow variable `{VARIABLE}`: schedule: a cron expression or a preset such as `@daily` is expected. "
            f"Received: {settings.schedule!r} ({error})."
        ) from None
    add_tasks(dag, pipeline_config)
    return dag


try:
    DAG = create_dag(AirflowSettings.parse(models.Variable.get(VARIABLE, default_var="{}"), VARIABLE))
except UserError as error:
    raise error from None  # Airflow shows the message, without what led to it
