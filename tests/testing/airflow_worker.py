"""What tests ask of Airflow, in a process and a home of its own.

python -m tests.testing.airflow_worker bags|task ...
"""

import json
import os
import sys

from transform.environment import prepare_environment

prepare_environment()

from airflow.exceptions import AirflowFailException
from airflow.models import DagBag

from tests.testing.repository import repository

DAG_FILE = repository() / "tfx_pipeline" / "runners" / "airflow" / "dag.py"
HEAVY = ("apache_beam", "keras", "tensorflow", "tfx")


def load_bags(variables: dict[str, str]) -> dict[str, dict]:
    """What Airflow makes of the DAG file with each value of the variable, and what that has imported."""
    found = {}
    for name, value in variables.items():
        bag = _bag(value)
        found[name] = {
            "errors": list(bag.import_errors.values()),
            "dags": [_describe(dag) for dag in bag.dags.values()],
            "heavy": [module for module in HEAVY if module in sys.modules],
        }
    return found


def _bag(variable: str) -> DagBag:
    os.environ["AIRFLOW_VAR_ONERANK"] = variable
    return DagBag(dag_folder=str(DAG_FILE), include_examples=False)


def _describe(dag) -> dict:
    return {
        "id": dag.dag_id,
        "schedule": dag.timetable.summary,
        "start": dag.start_date.isoformat(),
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "max_active_tasks": dag.max_active_tasks,
        "retries": sorted({task.retries for task in dag.tasks}),
        "retry_delay": sorted({task.retry_delay.total_seconds() for task in dag.tasks}),
        "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
        "arguments": {task.task_id: task.op_kwargs for task in dag.tasks},
    }


def run_tasks(variables: dict[str, str]) -> dict[str, str]:
    """What the first task of the DAG comes to with each value of the variable."""
    return {name: _first_task(*_bag(value).dags.values()) for name, value in variables.items()}


def _first_task(dag) -> str:
    task = dag.get_task("ImpressionExampleGen")
    try:
        task.python_callable(**task.op_kwargs, run_id="run 1")
    except AirflowFailException as error:
        return str(error)
    return "done"


if __name__ == "__main__":
    command, variables = sys.argv[1:]
    answer = {"bags": load_bags, "task": run_tasks}[command](json.loads(variables))
    print("\n" + json.dumps(answer))
