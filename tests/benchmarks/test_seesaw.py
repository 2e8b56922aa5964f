"""What each task gains or loses by learning with the others: the table of it."""

import json

import pytest

from benchmarks.quality.seesaw import SeesawRow, seesaw, write_seesaw
from tests.testing.tensorboard import events

TOGETHER = {"click": {"auc": 0.7, "gauc": 0.6}, "buy": {"auc": 0.8, "gauc": 0.65}}
ALONE = {"click": {"auc": 0.65, "gauc": 0.61}, "buy": {"auc": 0.82, "gauc": 0.65}}


def test_seesaw_is_a_row_a_task():
    rows = seesaw(TOGETHER, ALONE)
    assert rows == [SeesawRow("click", "auc", 0.7, 0.65), SeesawRow("buy", "auc", 0.8, 0.82)]
    assert [row.gain for row in rows] == pytest.approx([0.05, -0.02])
    assert [row.gain for row in seesaw(TOGETHER, ALONE, "gauc")] == pytest.approx([-0.01, 0.0])


def test_seesaw_goes_to_json_and_to_tensorboard(tmp_path):
    rows = seesaw(TOGETHER, ALONE)
    write_seesaw(rows, str(tmp_path))
    assert json.loads((tmp_path / "seesaw.json").read_text()) == [
        {"task": "click", "metric": "auc", "together": 0.7, "alone": 0.65, "gain": rows[0].gain},
        {"task": "buy", "metric": "auc", "together": 0.8, "alone": 0.82, "gain": rows[1].gain},
    ]
    values = events(tmp_path / "logs")
    assert set(values) == {"seesaw/auc/click", "seesaw/auc/buy", "seesaw"}
    assert values["seesaw/auc/buy"] == [(0, pytest.approx(-0.02))]
    assert values["seesaw"][0][1].splitlines()[-2:] == [
        "| click | auc | 0.7000 | 0.6500 | +0.0500 |",
        "| buy | auc | 0.8000 | 0.8200 | -0.0200 |",
    ]


def test_an_undefined_metric_is_null_in_json(tmp_path):
    write_seesaw(seesaw({"buy": {"auc": float("nan")}}, {"buy": {"auc": 0.5}}), str(tmp_path))
    (row,) = json.loads((tmp_path / "seesaw.json").read_text())
    assert row["together"] is None and row["gain"] is None and row["alone"] == 0.5
