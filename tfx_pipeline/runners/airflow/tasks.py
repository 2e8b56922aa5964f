"""The DAG's tasks: one for each component of the pipeline, and one for the report.

Airflow reads a DAG file again and again, so that nothing heavy is imported here: TFX and TensorFlow come when a task
runs, in its own process.
"""

from __future__ import annotations

from typing import Any

from airflow import models
from airflow.operators.python import PythonOperator

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.topology import topology
from transform.spec.loading import parse_spec

REPORT = "report"


def add_tasks(dag: models.DAG, config: PipelineConfig) -> None:
    """Adds a task for each component, and one that writes the report and the model card when all of them are done.

    Args:
        dag: DAG. It has no tasks yet.
        config: PipelineConfig. Airflow fills in the templates in its spec when a task runs.
    """
    pipeline = {
        "spec": config.spec.to_json(),
        "data_dir": config.data_dir,
        "output_dir": config.output_dir,
        "allow_anomalies": config.allow_anomalies,
        "beam_args": list(config.beam_args),
    }
    tasks: dict[str, PythonOperator] = {}
    for component, upstream in topology(config.spec).items():
        arguments = {"component": component, "pipeline": pipeline}
        tasks[component] = PythonOperator(
            task_id=component, python_callable=run_component, op_kwargs=arguments, dag=dag
        )
        tasks[component].set_upstream([tasks[name] for name in upstream])
    places = {"metadata_path": config.metadata_path, "pipeline": config.pipeline_name, "output": config.output_dir}
    components = dag.leaves
    PythonOperator(task_id=REPORT, python_callable=run_report, op_kwargs=places, dag=dag).set_upstream(components)


def run_component(component: str, pipeline: dict[str, Any], run_id: str) -> None:
    """Builds the pipeline and runs one of its components.

    The first components to run check the settings of the model, so that a wrong one ends the run before it begins.

    Args:
        component: str. Its id.
        pipeline: dict. The arguments of PipelineConfig, with the spec as JSON.
        run_id: str. Airflow's name of the run.

    Raises:
        AirflowFailException: when the user has something to correct, with the message; the task is not tried again.
    """
    from tfx_pipeline.pipeline import create_pipeline
    from tfx_pipeline.runners.airflow.launcher import launch, no_further_try_after_a_mistake
    from trainer.training.check_settings import check_settings

    with no_further_try_after_a_mistake():
        spec = parse_spec(pipeline["spec"])
        if not topology(spec)[component]:
            check_settings(spec)
        config = PipelineConfig(**{**pipeline, "spec": spec, "beam_args": tuple(pipeline["beam_args"])})
        built = create_pipeline(config)
    launch(built, component, run_id)


def run_report(metadata_path: str, pipeline: str, output: str, run_id: str) -> str:
    """Writes the report and the model card of a run; Airflow shows the report's path, which is returned."""
    from tfx_pipeline.metadata.runs import RunReader
    from tfx_pipeline.reporting.report import write_report
    from tfx_pipeline.runners.airflow.launcher import no_further_try_after_a_mistake

    with no_further_try_after_a_mistake():
        return write_report(RunReader(metadata_path, pipeline).find(run_id), output)
