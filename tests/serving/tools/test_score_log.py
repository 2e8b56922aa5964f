"""Scoring a log from the command line."""

import csv
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from serving.tools import score_log
from tests.testing.repository import repository
from transform.features import request_example

LABELS = ("bought", "saved", "shared")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model_dir(served, tmp_path_factory) -> str:
    """The folder of the versions, of which `2` is the newest."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "2").symlink_to(served.path)
    (folder / "1").mkdir()
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(small, tmp_path_factory) -> str:
    """The small data, some rows of the log twice."""
    folder = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(small.data_dir, folder)
    lines = (folder / "log_b.csv").read_text().splitlines(keepends=True)
    (folder / "log_b.csv").write_text("".join(lines + lines[10:30] + lines[10:12]))
    return str(folder)


@pytest.fixture(scope="module")
def little_data_dir(small, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("little") / "data"
    shutil.copytree(small.data_dir, folder)
    for name in ("log_a.csv", "log_b.csv"):
        (folder / name).write_text("".join((folder / name).read_text().splitlines(keepends=True)[:40]))
    return str(folder)


def score(model_dir, data_dir, output, *options):
    return score_log.main(["--model", model_dir, "--data", data_dir, "--output", str(output), *options])


@pytest.fixture(scope="module")
def table(model_dir, data_dir, tmp_path_factory) -> list[dict[str, str]]:
    output = tmp_path_factory.mktemp("scores") / "scores.csv"
    assert score(model_dir, data_dir, output) == 0
    assert os.listdir(output.parent) == ["scores.csv"]
    return read(output)


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_log(folder):
    return [row for name in ("log_a.csv", "log_b.csv") for row in read(os.path.join(folder, name))]


def by_request(table):
    requests = {}
    for row in table:
        requests.setdefault(row["request_id"], []).append(row)
    return requests


# === What is written ===


def test_every_impression_has_a_row_and_duplicates_have_one(small, table, data_dir):
    rows = read_log(data_dir)
    distinct = {tuple(row.values()) for row in rows}
    assert len(rows) == len(distinct) + 22
    assert list(table[0]) == ["request_id", "item", *small.spec.task_names, "score", "rank"]
    expected = Counter((f"{user}|{day}", item) for user, item, day, *_ in distinct)
    assert Counter((row["request_id"], row["item"]) for row in table) == expected


def test_probabilities_are_those_of_the_serving_signature(small, served, table):
    records = [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP")]
    answer = served.loaded.signatures["serving_default"](examples=tf.constant(records))
    columns = (*small.spec.task_names, "score")
    scores = np.stack([answer[column].numpy() for column in columns], axis=-1)
    expected = {}
    for request, record in enumerate(records):
        values = request_example.decode(record)
        for n, item in enumerate(values["item"]):
            key = (values[request_example.REQUEST_ID][0], item)
            expected.setdefault(key, []).append(scores[request, n].tolist())
    written = {}
    for row in table:
        written.setdefault((row["request_id"], row["item"]), []).append([float(row[column]) for column in columns])
    assert len(expected) > 500
    for key, of_key in expected.items():
        found, wanted = sorted(written[key], key=sum), sorted(of_key, key=sum)  # an item may stand twice
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, err_msg=str(key))


def test_ranks_follow_the_score_within_a_request(small, table):
    requests = by_request(table)
    assert max(map(len, requests.values())) > small.spec.request.max_candidates, "some requests are read in parts"
    for rows in requests.values():
        assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
        scores = [float(row["score"]) for row in rows]
        assert scores == sorted(scores, reverse=True)


def test_a_log_without_labels_is_scored(small, table, model_dir, data_dir, tmp_path):
    """Without what happened the histories know less, but a user's first request has none."""
    bare = tmp_path / "bare"
    shutil.copytree(data_dir, bare)
    for name in ("log_a.csv", "log_b.csv"):
        rows = [{key: value for key, value in row.items() if key not in LABELS} for row in read(bare / name)]
        with open(bare / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    assert score(model_dir, str(bare), tmp_path / "scores.csv") == 0
    unlabelled = read(tmp_path / "scores.csv")
    assert len(unlabelled) <= len(table)
    assert all(0 <= float(row[name]) <= 1 for row in unlabelled for name in (*small.spec.task_names, "score"))
    first = {row["uid"]: f"{row['uid']}|{row['day']}" for row in reversed(read_log(data_dir))}
    kept, bare_scores = (
        sorted(
            (row["request_id"], row["item"], float(row["score"])) for row in rows if row["request_id"] in first.values()
        )
        for rows in (table, unlabelled)
    )
    assert len(kept) > 100 and [row[:2] for row in kept] == [row[:2] for row in bare_scores]
    # the other requests of the batch, and so the padding, are not the same: the last digit may differ
    np.testing.assert_allclose([row[2] for row in kept], [row[2] for row in bare_scores], atol=5e-6)


# === What can't be done ===


def assert_refused(capsys, folder, code, *words):
    output, error = capsys.readouterr()
    assert code == 1 and "impressions scored" not in output
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert sorted(os.listdir(folder)) == [], "nothing is left behind"


def test_an_unknown_model_is_refused(little_data_dir, tmp_path, capsys):
    code = score(str(tmp_path.parent / "no-model"), little_data_dir, tmp_path / "scores.csv")
    assert_refused(capsys, tmp_path, code, "no-model", "exported ranking model")


def test_a_missing_data_folder_is_refused(model_dir, tmp_path, capsys):
    code = score(model_dir, str(tmp_path.parent / "no-data"), tmp_path / "scores.csv")
    assert_refused(capsys, tmp_path, code, "no-data", "log*.csv")


def test_a_broken_row_of_the_log_is_refused(model_dir, little_data_dir, tmp_path, tmp_path_factory, capsys):
    broken = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(little_data_dir, broken)
    with open(broken / "log_b.csv", "a") as file:
        file.write("u1,i1,1,noon,phone,0.5,0.5,0,0,0,5\n")
    code = score(model_dir, str(broken), tmp_path / "scores.csv")
    assert_refused(capsys, tmp_path, code, "log_b.csv", "time_ms", "noon")


def test_from_the_shell_an_output_that_can_not_be_written_is_one_line_of_error(model_dir, little_data_dir, tmp_path):
    output = tmp_path / "no" / "such" / "scores.csv"
    arguments = ["--model", model_dir, "--data", little_data_dir, "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "serving.tools.score_log", *arguments],
        cwd=repository(),
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    # TensorFlow 2.21 tells of oneDNN and of CUDA while it is imported, whatever its log level says.
    said = [line for line in done.stderr.splitlines() if not re.match(r"WARNING: All log messages|I\d{4} ", line)]
    assert len(said) == 1 and said[0].startswith("error: --output: a file that can be written is expected.")
    assert str(output) in said[0]
    assert os.listdir(tmp_path) == []


@pytest.fixture
def loaded_before(monkeypatch, served):
    """The model is not read again, which takes longer than all else of what finds an output that can't be written."""
    loaded = served.loaded  # before the function that reads it is replaced
    monkeypatch.setattr(score_log.tf.saved_model, "load", lambda _: loaded)


def test_an_output_that_is_a_folder_is_refused_and_kept(
    loaded_before, model_dir, little_data_dir, tmp_path, tmp_path_factory, capsys
):
    folder = tmp_path_factory.mktemp("taken")
    (folder / "scores.csv").mkdir()
    code = score(model_dir, little_data_dir, folder / "scores.csv")
    assert_refused(capsys, tmp_path, code, "--output", "scores.csv")
    assert os.listdir(folder) == ["scores.csv"]


def test_an_unknown_spec_file_is_refused(model_dir, little_data_dir, tmp_path, capsys):
    code = score(model_dir, little_data_dir, tmp_path / "scores.csv", "--spec", str(tmp_path.parent / "no-spec.yaml"))
    assert_refused(capsys, tmp_path, code, "no-spec.yaml")
