"""Runs the DAG for real: `make airflow-test`. Fails when a task, the report, the push or the pushed model does.

The spec is the shipped one with splits that move with the day of the run. Airflow's home, its SQLite database and all
outputs lie in one folder; nothing is written elsewhere. Stack B has no Airflow 2.10: there nothing is run, and one line
says so.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DAG_FILE = ROOT / "tfx_pipeline" / "runners" / "airflow" / "dag.py"
SPEC, DATA = ROOT / "data" / "kuairand_mini.yaml", ROOT / "data" / "kuairand_pure_mini"
SPLIT = {"by": "date", "date_format": "YYYYMMDD", "train": [-10, -3], "eval": [-2, -2], "test": [-1, 0]}
REPORT_FILES = ("report.html", "model_card.json")
PARTS = ("train", "eval", "test")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, required=True, help="Airflow's home; everything is written below it")
    parser.add_argument("--date", default="2022-05-06", help="the day of the run, as YYYY-MM-DD")
    arguments = parser.parse_args()
    if sys.version_info >= (3, 11):
        print("Nothing was run: this is stack B, which has no Airflow 2.10. The DAG is tested on stack A.")
        return 0
    home = arguments.home.resolve()
    dags, output = home / "dags", home / "onerank"
    dags.mkdir(parents=True, exist_ok=True)
    shutil.copy(DAG_FILE, dags / "onerank.py")
    spec = home / SPEC.name
    spec.write_text(yaml.safe_dump({**yaml.safe_load(SPEC.read_text()), "split": SPLIT}, sort_keys=False))
    variable = {"spec": str(spec), "data": str(DATA), "output": str(output)}
    airflow = Airflow(home, json.dumps(variable))

    airflow.run("db", "migrate")
    (dag,) = airflow.table("dags", "list")
    print(f"DAG {dag['dag_id']}, {arguments.date}; log: {airflow.log}", flush=True)
    started = time.time()
    airflow.run("dags", "test", dag["dag_id"], arguments.date, check=False)
    run = f"manual__{arguments.date}T00:00:00+00:00"
    tasks = airflow.table("tasks", "states-for-dag-run", dag["dag_id"], run)
    for task in sorted(tasks, key=lambda task: task["start_date"]):
        print(f"  {task['task_id']}: {task['state']}")
    print(f"{len(tasks)} tasks, {time.time() - started:.0f} s.", flush=True)
    if not tasks or any(task["state"] != "success" for task in tasks):
        print(f"error: tasks should run, and succeed. Read {airflow.log}.", file=sys.stderr)
        return 1
    reports = output / "reports" / dag["dag_id"] / run.replace(":", "-")
    if missing := [name for name in REPORT_FILES if not (reports / name).is_file()]:
        print(f"error: {', '.join(missing)} should be in {reports}.", file=sys.stderr)
        return 1
    print(f"Report: {reports / REPORT_FILES[0]}")
    return check_pushed_model(output / "serving" / dag["dag_id"], arguments.date, home / "scores.csv")


class Airflow:
    """The command line, in a home of its own."""

    def __init__(self, home: Path, variable: str):
        self.log = home / "airflow_test.log"
        self._environment = {
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW_VAR_ONERANK": variable,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }

    def run(self, *arguments: str, check: bool = True) -> None:
        """Runs a command; what it says goes to the log."""
        with open(self.log, "ab") as log:
            done = subprocess.run(self._command(*arguments), env=self._environment, stdout=log, stderr=log, check=False)
        if check and done.returncode:
            sys.exit(f"error: `airflow {' '.join(arguments)}` failed. Read {self.log}.")

    def table(self, *arguments: str) -> list[dict[str, str]]:
        """What a command lists; log lines may stand before it."""
        with open(self.log, "ab") as log:
            command = self._command(*arguments, "--output", "json")
            answer = subprocess.check_output(command, env=self._environment, stderr=log, text=True)
        return json.loads(answer.strip().splitlines()[-1])

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "ignore", "-m", "airflow", *arguments]


def check_pushed_model(folder: Path, date: str, scores: Path) -> int:
    """The pushed model was trained on the days before the run, and scores the log in a process of its own."""
    model = max(folder.iterdir(), key=lambda version: int(version.name))
    stored = json.loads((model / "assets.extra" / "ranking_spec.json").read_text())["split"]
    yesterday = datetime.date.fromisoformat(date) - datetime.timedelta(days=1)
    days = {name: [yesterday + datetime.timedelta(days=bound) for bound in SPLIT[name]] for name in PARTS}
    expected = {"by": "date", **{name: [int(f"{day:%Y%m%d}") for day in bounds] for name, bounds in days.items()}}
    print(f"Pushed: {model.relative_to(Path.cwd()) if model.is_relative_to(Path.cwd()) else model}, split {stored}")
    if stored != expected:
        print(f"error: split {expected} should be in the pushed model.", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "serving.tools.score_log", "--model", str(model), "--data", str(DATA)]
    done = subprocess.run([*command, "--output", str(scores)], check=False)
    if done.returncode:
        return done.returncode
    with open(scores, newline="") as file:
        wrong = [row for row in csv.DictReader(file) if not 0 < float(row["score"]) < 1]
    if wrong:
        print(f"error: {len(wrong)} scores are not between 0 and 1.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
