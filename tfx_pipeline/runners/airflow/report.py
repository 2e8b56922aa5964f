"""The DAG's last task."""

from __future__ import annotations

from airflow import models
from airflow.operators.python import PythonOperator

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.metadata.runs import RunReader
from tfx_pipeline.reporting.report import write_report
from tfx_pipeline.runners.airflow.launcher import no_further_try_after_a_mistake

TASK_ID = "report"


def add_report(dag: models.DAG, config: PipelineConfig) -> None:
    """Adds a task that writes the run's report and model card when all components are done.

    Args:
        dag: DAG. One task a component.
        config: PipelineConfig. What the DAG was made of.
    """
    places = {"metadata_path": config.metadata_path, "pipeline": config.pipeline_name, "output": config.output_dir}
    components = dag.leaves
    PythonOperator(task_id=TASK_ID, python_callable=_write, op_kwargs=places, dag=dag).set_upstream(components)


def _write(metadata_path: str, pipeline: str, output: str, run_id: str) -> str:
    """Writes both; Airflow gives the run's id, and shows the report's path, which is returned."""
    with no_further_try_after_a_mistake():
        return write_report(RunReader(metadata_path, pipeline).find(run_id), output)
