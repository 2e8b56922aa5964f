"""Scoring a log whose aggregate features come from the log itself, or from an exported table."""

import csv
import os
import shutil
from datetime import date

import numpy as np
import pytest

from serving.tools import score_log
from transform.ingest.aggregates.export import export_tables

pytestmark = pytest.mark.once

DAY = 8  # of the log's last requests; day 1 is the second of January 1970
LABELS = ("bought", "saved", "shared")


@pytest.fixture
def model_dir(served_aggregates) -> str:
    return served_aggregates.path


@pytest.fixture(scope="module")
def table(small_aggregates, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("aggregates") / "table"
    export_tables(small_aggregates.spec, small_aggregates.data_dir, date(1970, 1, 1 + DAY), str(folder))
    return str(folder)


def score(model_dir, data_dir, output, *options):
    arguments = ["--model", model_dir, "--data", str(data_dir), "--output", str(output), *options]
    if score_log.main(arguments):
        return None
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [(row["request_id"], row["item"], float(row["score"])) for row in rows]
    return sorted(row for row in scores if row[0].endswith(f"|{DAY}"))


def only_day(data_dir, folder):
    """The data with the log of the last day alone, and without its labels."""
    shutil.copytree(data_dir, folder)
    for name in ("log_a.csv", "log_b.csv"):
        with open(folder / name, newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["day"]) == DAY]
        os.remove(folder / name)
        if rows:
            with open(folder / name, "w", newline="") as file:
                columns = [column for column in rows[0] if column not in LABELS]
                writer = csv.DictWriter(file, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
    return folder


def test_yesterday_s_table_scores_today_s_log_as_the_whole_log_does(
    small_aggregates, model_dir, table, tmp_path, capsys
):
    """The histories come from the log: they are the same only where all of it is given."""
    data_dir = small_aggregates.data_dir
    whole = score(model_dir, data_dir, tmp_path / "whole.csv")
    from_table = score(model_dir, data_dir, tmp_path / "table.csv", "--aggregates", table)
    assert len(whole) > 200
    assert [row[:2] for row in from_table] == [row[:2] for row in whole]
    np.testing.assert_allclose([row[2] for row in from_table], [row[2] for row in whole], atol=2e-6)
    assert f"requests are not of the day that the table in {table} is for" in capsys.readouterr().err


def test_a_log_of_one_day_without_labels_is_scored_with_the_table(small_aggregates, model_dir, table, tmp_path, capsys):
    bare = only_day(small_aggregates.data_dir, tmp_path / "bare")
    assert score(model_dir, bare, tmp_path / "refused.csv") is None
    assert "a log with labels to count, or an exported table, is expected" in capsys.readouterr().err
    assert not (tmp_path / "refused.csv").exists()
    scores = score(model_dir, bare, tmp_path / "scores.csv", "--aggregates", table)
    assert len(scores) > 200
    assert "note:" not in capsys.readouterr().err, "all requests are of the table's day"


def test_a_folder_without_a_table_is_refused(small_aggregates, model_dir, tmp_path, capsys):
    assert score(model_dir, small_aggregates.data_dir, tmp_path / "scores.csv", "--aggregates", str(tmp_path)) is None
    assert "holds no aggregates.json" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
