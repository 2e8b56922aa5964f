"""The main job as a user runs it: one output folder, run after run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.testing import small_problem
from tests.testing.repository import repository
from tests.testing.schedule import reported_runs, run, run_from_shell

pytestmark = pytest.mark.pipeline

# === Starts that follow one another on one output folder, as those of a schedule do ===


def test_a_run_that_was_killed_is_taken_up_where_it_was(schedule):
    """Also by code that has one model more than when it was killed."""
    killed, first = schedule.start("killed"), schedule.start("first")
    assert any(name.startswith("execution") for name in killed.left_over)
    assert "note: Trainer was interrupted" in first.stdout
    assert "note: Training goes on after 0 epochs and 4 steps" in first.stdout
    assert first.states()["Transform"] == "cached" and first.states()["Trainer"] == "done"
    assert first.checkpoints == ["old-2", "old-3"]
    assert first.left_over == []


def test_first_run_is_blessed_by_its_values_and_pushed(schedule):
    output, first = schedule.output, schedule.start("first")
    assert "\nBLESSED (no other blessed model to compare with)" in first.stdout
    assert "not gated" in first.stdout
    assert "Anomalies: none" in first.stdout
    (pushed,) = first.versions
    assert pushed.isdigit()
    assert str(output / "serving" / "small" / pushed) in first.stdout
    assert (output / "serving" / "small" / pushed / "saved_model.pb").exists()
    assert (output / "serving" / "small" / pushed / "assets.extra" / "tf_serving_warmup_requests").exists()
    beside = {"small", "models.config", "batching_parameters.txt", "monitoring.config"}
    assert set(os.listdir(output / "serving")) == beside
    assert re.search(
        r"\nServing: 20 requests of the eval split scored .* rank takes [\d.]+ ms \(median\)", first.stdout
    )
    for task in ("buy", "save", "share"):
        assert f"│ {task} " in first.stdout
    assert "price=[100, 200)" in first.stdout, "numeric slices are readable ranges"


def test_table_holds_the_numbers_of_the_served_model(schedule):
    import tensorflow as tf
    from sklearn.metrics import log_loss, roc_auc_score

    from tfx_pipeline.evaluation.eval_config import load_metrics
    from transform.features import request_example

    output, first = schedule.output, schedule.start("first")
    of = reported_runs(output)[0]
    measured = load_metrics(of.uri("Evaluator", "evaluation")).candidate[()]
    files = Path(of.uri("ImpressionExampleGen", "examples")).glob("Split-test/*.gz")
    requests = [record.numpy() for record in tf.data.TFRecordDataset([str(path) for path in files], "GZIP")]
    model = tf.saved_model.load(str(output / "serving" / "small" / first.versions[0]))
    answer = model.signatures["serving_default"](examples=tf.constant(requests))
    decoded = [request_example.decode(request) for request in requests]
    for task in ("buy", "save", "share"):
        labels = np.concatenate([values[request_example.label_key(task)] for values in decoded])
        observed = np.concatenate([values[request_example.weight_key(task)] for values in decoded]) > 0
        scores = np.concatenate(
            [answer[task].numpy()[n, : values["candidate_count"][0]] for n, values in enumerate(decoded)]
        )
        auc = roc_auc_score(labels[observed], scores[observed])
        # batches of other sizes round otherwise: two scores that are all but equal may change places, for 4e-6
        assert measured[task]["auc"] == pytest.approx(auc, abs=1e-5)
        assert measured[task]["log_loss"] == pytest.approx(log_loss(labels[observed], scores[observed]), abs=1e-6)
        assert f"{measured[task]['auc']:.4f}" in first.stdout


def test_second_run_changes_nothing_and_prints_the_stored_table(schedule):
    first, second = schedule.start("first"), schedule.start("second")
    assert "Nothing changed: the model was trained and evaluated before" in second.stdout
    assert second.versions == first.versions
    assert "note:" not in second.stdout, "nothing was interrupted"
    for line in first.stdout.splitlines():
        if "│" in line:
            assert line in second.stdout
    assert {state for node, state in second.states().items() if node not in ("AnomalyGate",)} <= {"cached", "done"}
    for node in ("Trainer", "Evaluator", "ServingValidator"):
        assert second.states()[node] == "cached"


def test_a_worse_task_is_not_blessed_and_named(schedule):
    worse = schedule.start("worse")
    assert "NOT BLESSED (against the blessed model)" in worse.stdout
    assert "save: auc change" in worse.stdout
    assert (
        "\nNOT SERVABLE (serving the new model failed)\n  rank: a median latency of at most 1e-06 times" in worse.stdout
    )
    assert "buy: auc" not in worse.stdout
    assert worse.versions == schedule.start("second").versions, "the one in production stays"
    assert worse.states()["Transform"] == "cached", "a task's weight concerns the Trainer alone"
    assert worse.states()["Trainer"] == "done"


def test_edited_code_runs_again_what_depends_on_it(schedule):
    edited = schedule.start("edited")
    assert edited.states()["ImpressionExampleGen"] == "cached"
    assert edited.states()["Transform"] == "cached"
    assert edited.states()["Trainer"] == "done"
    assert "\nBLESSED (against the blessed model)" in edited.stdout
    assert "ServingValidator" not in edited.states() and "Serving:" not in edited.stdout
    assert "(+0.0000)" in edited.stdout, "the same code in other bytes trains the same model"


def test_data_without_a_test_split_stop_the_run_before_anything_is_trained(schedule):
    stopped = schedule.start("without a test split")
    assert stopped.code == 1
    assert "split.test: requests with `day` from 7 to 8 are expected" in stopped.stderr
    assert "Trainer" not in stopped.stdout
    assert "Traceback" not in stopped.stderr
    assert stopped.versions == schedule.start("edited").versions


# === Other problems ===


def test_relative_splits_reach_the_examples_as_days(tmp_path):
    """A date of which the log knows nothing stops the run where the days are looked for, and says which they are."""
    data = small_problem.write_data(tmp_path / "data")
    for path in data.glob("log*.csv"):
        header, *rows = (line.split(",") for line in path.read_text().splitlines())
        dated = [[*row[:2], f"2022-05-0{row[2]}", *row[3:]] for row in rows]
        path.write_text("".join(",".join(row) + "\n" for row in [header, *dated]))
    split = {"by": "day", "date_format": "YYYY-MM-DD", "train": [-7, -3], "eval": [-2, -2], "test": [-1, 0]}
    spec = small_problem.write_spec(tmp_path / "small.yaml", split=split)
    stopped = run(spec, data, tmp_path / "out", "--as_of", "2022-05-10")
    assert stopped.code == 1
    days = "train 2022-05-03 to 2022-05-07, eval 2022-05-08 to 2022-05-08, test 2022-05-09 to 2022-05-10"
    assert f"Splits by day: {days}\n" in stopped.stdout
    assert "split.test: requests with `day` from 2022-05-09 to 2022-05-10 are expected" in stopped.stderr
    assert "Trainer" not in stopped.stdout


def test_the_readmes_own_data_runs_as_it_stands(tmp_path):
    """Another shape: `id` instead of `group_by`, mostly one candidate a request, no files of tables, other names."""
    readme = (repository() / "README.md").read_text()
    header = re.search(r"```csv\n(.*?)\n", readme)[1]
    written = re.search(r"```yaml\n(name: mail\n.*?)```", readme, re.DOTALL)[1]
    unserved = written.replace("evaluation:\n", "evaluation:\n  served_requests: 0\n")  # the next one is served
    (tmp_path / "mail.yaml").write_text(unserved)
    rng = np.random.default_rng(0)
    rows = [header]
    for n in range(1800):
        visit, person, strength = n if n % 10 else n + 1, rng.integers(50), rng.normal()
        opened = int(rng.random() < 1 / (1 + np.exp(-2 * strength)))
        replied = int(opened and rng.random() < 0.5)
        person = visit % 50
        at, week = 1650813567259 + 1000 * visit, 1 + visit // 601
        rows.append(f"v{visit},p{person},w{rng.integers(20)},{at},{week},{strength:.4f},{opened},{replied}")
    (tmp_path / "visits.csv").write_text("\n".join(rows) + "\n")
    done = run(tmp_path / "mail.yaml", tmp_path, tmp_path / "out")
    assert done.code == 0, done.stdout + done.stderr
    assert "│ open " in done.stdout and "│ reply " in done.stdout and "ServingValidator" not in done.stdout
    assert "strength=[" in done.stdout


def test_no_sequences_no_tables_one_candidate_a_request(tmp_path):
    rng = np.random.default_rng(0)
    rows = ["visit,who,what,at,week,strength,opened"]
    for n in range(1500):
        strength = rng.normal()
        opened = int(rng.random() < 1 / (1 + np.exp(-2 * strength)))
        rows.append(f"v{n},p{rng.integers(50)},w{rng.integers(20)},{n},{1 + n // 500},{strength:.4f},{opened}")
    (tmp_path / "visits.csv").write_text("\n".join(rows) + "\n")
    spec = {
        "name": "mail",
        "data": {"impressions": {"files": ["visits.csv"]}},
        "request": {"id": "visit", "time": "at"},
        "split": {"by": "week", "train": [1, 1], "eval": [2, 2], "test": [3, 3]},
        "tasks": [{"name": "open", "label": "opened"}],
        "features": {
            "user": [{"name": "person", "column": "who", "type": "categorical"}],
            "candidate": [{"name": "strength", "type": "numeric"}],
        },
        "model": {"name": "onerank", "d": 16, "layers": 1, "heads": 2},
        "training": {"epochs": 1, "batch_requests": 32, "optimizer": {"learning_rate": 0.01}},
        "evaluation": {"served_requests": 10},
    }
    (tmp_path / "mail.yaml").write_text(json.dumps(spec))
    done = run(tmp_path / "mail.yaml", tmp_path, tmp_path / "out")
    assert done.code == 0, done.stdout + done.stderr
    assert "\nBLESSED" in done.stdout and "\nServing: 10 requests" in done.stdout
    assert "popularity" not in done.stdout, "the spec names no item"
    assert len(os.listdir(tmp_path / "out" / "serving" / "mail")) == 1


@pytest.mark.parametrize(
    ("spec", "data", "said"),
    [("nowhere.yaml", "data", "a readable YAML file"), ("small.yaml", "nowhere", "files that match")],
)
def test_a_users_mistake_gets_one_message_and_leaves_nothing(spec, data, said, tmp_path):
    """From the shell; test_bad_input.py has the other mistakes."""
    small_problem.write_spec(tmp_path / "small.yaml")
    small_problem.write_data(tmp_path / "data")
    failed = run_from_shell(tmp_path / spec, tmp_path / data, tmp_path / "out")
    assert failed.code == 1
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr + failed.stdout
    assert not (tmp_path / "out" / "pipeline").exists()
