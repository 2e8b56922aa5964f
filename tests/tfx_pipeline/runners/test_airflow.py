"""The Airflow DAG: its settings, what Airflow makes of it, and tasks that are tried again.

`make airflow-test` installs Airflow and runs the DAG; without it the tests of the DAG itself are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing import small_problem
from tests.testing.repository import repository
from tests.testing.tiers import costly
from tfx_pipeline.metadata.interrupted import clear_interrupted
from tfx_pipeline.runners.airflow.settings import AirflowSettings
from transform.errors import PipelineError
from transform.spec.loading import parse_spec

DATE = "{{ (data_interval_end - macros.timedelta(days=1)) | ds }}"
needs_airflow = pytest.mark.skipif(
    importlib.util.find_spec("airflow") is None, reason="Airflow is not installed: make setup-airflow"
)


def test_every_setting_has_a_default(monkeypatch):
    monkeypatch.setenv("AIRFLOW_HOME", "/somewhere")
    settings = AirflowSettings.parse("{}", "onerank")
    assert Path(settings.spec).exists() and Path(settings.data).is_dir()
    assert settings.output == "/somewhere/onerank"
    assert (settings.schedule, settings.catchup, settings.retries) == ("@daily", False, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a JSON object is expected. Received: ''"),
        ("[1]", r"a JSON object is expected. Received: '\[1\]'"),
        ('{"retry": 1}', "retry: a known key is expected. Known keys: spec, data, output"),
        ('{"retries": -1}', "retries: Input should be greater than or equal to 0. Received: -1"),
        ('{"seed": "x"}', 'seed: Input should be a valid integer, unable to parse string as an integer. Received: "x"'),
        ('{"spec": "data/a.yaml"}', 'spec: an absolute path is expected, as Airflow.*Received: "data/a.yaml"'),
        ('{"catchup": "maybe"}', "catchup: Input should be a valid boolean"),
        ('{"start_date": "soon"}', "start_date: Input should be a valid date"),
    ],
)
def test_a_wrong_variable_is_told_in_one_line(text, said):
    with pytest.raises(PipelineError, match="^Airflow variable `onerank`: " + said) as caught:
        AirflowSettings.parse(text, "onerank")
    assert len(str(caught.value).splitlines()) == 1


def ask(home: Path, program: str, *arguments: str):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", program, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(repository()),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
@costly("slow")
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("airflow")
    split = {"by": "day", "date_format": "YYYY-MM-DD", "train": [-6, -2], "eval": [-1, -1], "test": [0, 0]}
    moving = small_problem.write_spec(folder / "moving.yaml", split=split)
    literal = small_problem.write_spec(folder / "literal.yaml")
    wrong = small_problem.write_spec(folder / "wrong.yaml", training={"epoch": 1})
    common = {"data": str(folder / "data"), "output": str(folder / "out")}
    own = {"schedule": "0 4 * * 1", "catchup": True, "retries": 0, "retry_delay": 0.5, "start_date": "2023-02-03"}
    variables = {
        "moving": {**common, "spec": str(moving)},
        "again": {**common, "spec": str(moving)},
        "literal": {**common, "spec": str(literal), **own, "seed": 17, "allow_anomalies": True},
        "no_spec": {**common, "spec": str(folder / "nothing.yaml")},
        "wrong_spec": {**common, "spec": str(wrong)},
        "schedule": {**common, "spec": str(literal), "schedule": "every day"},
        "by_hand": {**common, "spec": str(literal), "schedule": None},
    }
    texts = {name: json.dumps(value) for name, value in variables.items()}
    home = folder / "home"
    return ask(home, "tests.testing.airflow_worker", "bags", json.dumps({**texts, "no_json": "spec: x"})), folder


@needs_airflow
def test_the_dag_loads_with_its_defaults(bags):
    (dag,) = bags[0]["moving"]["dags"]
    assert bags[0]["moving"]["errors"] == []
    assert (dag["id"], dag["schedule"]) == ("small", "0 0 * * *")
    assert dag["catchup"] is False
    assert (dag["max_active_runs"], dag["max_active_tasks"]) == (1, 1)
    assert (dag["retries"], dag["retry_delay"]) == ([2], [300.0])
    assert dag["upstream"]["AtomicPusher"] == ["Evaluator", "ServingValidator", "Trainer"]
    assert "latest_blessed_model" in dag["upstream"]["Evaluator"]
    assert dag["upstream"]["report"] == ["AtomicPusher", "LabelStatistics"], "all others lie before these"
    assert len(dag["upstream"]) == 13


@needs_airflow
def test_reading_the_file_imports_nothing_heavy(bags):
    """Airflow reads it every few seconds, in a process of its own each time: TFX alone takes ten and 900 MB."""
    assert {name: bag["heavy"] for name, bag in bags[0].items()} == {name: [] for name in bags[0]}


@needs_airflow
def test_the_dag_takes_what_the_variable_says(bags):
    (dag,) = bags[0]["literal"]["dags"]
    assert (dag["schedule"], dag["start"]) == ("0 4 * * 1", "2023-02-03T00:00:00+00:00")
    assert dag["catchup"] is True
    assert (dag["retries"], dag["retry_delay"]) == ([0], [30.0])
    pipeline = dag["arguments"]["Trainer"]["pipeline"]
    assert parse_spec(pipeline["spec"]).training.seed == 17
    assert pipeline["allow_anomalies"] is True
    (by_hand,) = bags[0]["by_hand"]["dags"]
    assert by_hand["schedule"] == "None"


@needs_airflow
def test_relative_splits_wait_for_the_date_that_airflow_fills_in(bags):
    (moving,), (literal,) = bags[0]["moving"]["dags"], bags[0]["literal"]["dags"]
    assert {node for node, arguments in literal["arguments"].items() if "{{" in str(arguments)} == set()
    waiting = {node for node, arguments in moving["arguments"].items() if "{{" in str(arguments)}
    assert waiting == set(moving["arguments"]) - {"report"}
    spec_text = moving["arguments"]["LabelStatistics"]["pipeline"]["spec"]
    assert DATE in spec_text
    spec = parse_spec(spec_text.replace(DATE, "2022-05-05"))
    assert spec.split.ranges()["train"] == ("2022-04-29", "2022-05-03")


@needs_airflow
def test_reading_the_file_again_gives_the_same_tasks(bags):
    """What changes from one reading to the next would look like an edited DAG, and be no cache key."""
    (first,), (second,) = bags[0]["moving"]["dags"], bags[0]["again"]["dags"]
    assert first["arguments"] == second["arguments"]


@needs_airflow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_json", "Airflow variable `onerank`: a JSON object is expected. Received: 'spec: x'"),
        ("no_spec", "nothing.yaml: a readable YAML file in UTF-8 is expected"),
        ("wrong_spec", "Did you mean `epochs`?"),
        ("schedule", "schedule: a cron expression or a preset such as `@daily` is expected. Received: 'every day'"),
    ],
)
def test_a_mistake_is_the_last_line_of_one_import_error(bags, name, said):
    (error,) = bags[0][name]["errors"]
    assert bags[0][name]["dags"] == []
    assert said in error.strip().splitlines()[-1]
    assert "During handling" not in error and "direct cause" not in error


@pytest.mark.slow
@needs_airflow
def test_wrong_settings_of_the_model_fail_the_first_task(tmp_path):
    """With the messages of the local runner, and not when the file is read: to check them takes Keras."""
    models = {
        "unknown": {"name": "din", "attention_hiden": 3},
        "out of range": {"name": "onerank", "dropout": 1.5},
        "no blocks": {"name": "din"},
        "right": {"name": "din", "attention_hidden": 3},
    }
    variables = {}
    for name, model in models.items():
        changes = {"training": {"gradient_checkpointing": True}} if name == "no blocks" else {}
        spec = small_problem.write_spec(tmp_path / f"{name}.yaml", model=model, **changes)
        places = {"spec": str(spec), "data": str(tmp_path / "no data"), "output": str(tmp_path / "out")}
        variables[name] = json.dumps(places)
    said = ask(tmp_path / "home", "tests.testing.airflow_worker", "task", json.dumps(variables))
    expected = "model.attention_hiden: a setting of `din` is expected. Received: `attention_hiden`. "
    assert said["unknown"] == f"{expected}Did you mean `attention_hidden`?"
    assert said["out of range"].startswith("model: ") and "`dropout`" in said["out of range"]
    assert said["no blocks"].startswith(
        "training.gradient_checkpointing: a model whose blocks can be computed again is expected."
    )
    assert said["right"].startswith("data.impressions.files"), "the component itself runs, and misses its data"


@pytest.mark.slow
@needs_airflow
def test_a_task_that_is_tried_again_starts_anew(tmp_path):
    """With TFX's own launcher the second try fails; the mistake of a user would be tried again."""
    answer = ask(tmp_path / "home", "tests.testing.airflow_tries", str(tmp_path))
    assert answer["first"] == "OSError: the disk was away"
    assert {answer[name] for name in ("second", "reader", "cleared", "reader again")} == {"done"}
    assert answer["read"] == [["part-2"], ["part-3"]], "nothing of an earlier try is left in a later one's folder"
    assert answer["mistake"].startswith("no further try: split.test: requests are expected")
    assert answer["components"] == {"Fickle": True, "Reader": True, "Mistaken": False}, "the last tries alone"
    assert [path.name for path in Path(answer["output"]).iterdir()] == ["part-3"]

    with pytest.raises(PipelineError, match=r"--output: .*Received: one that Airflow runs a pipeline in, by .*.db\. "):
        clear_interrupted(str(tmp_path / "metadata.db"), str(tmp_path / "root"))
    assert list((tmp_path / "root" / "Mistaken").iterdir()), "what may still run was left alone"
