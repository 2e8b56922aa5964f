"""The notebooks: executed on a smaller problem, and held to what is committed."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from tests.testing.repository import repository
from tests.testing.tiers import costly

NAMES = ("01_quickstart.ipynb", "02_slices_and_seesaw.ipynb")
FAVOURED, PAYS = "profile_enter", "click"
LOGGED = r"^(INFO|WARNING|ERROR):"  # what TensorFlow logs goes to a notebook's stdout


def write_problem(folder: Path) -> dict[str, str]:
    """A quarter of the users, two tasks, few features; returns what the notebooks read from the environment."""
    sample = repository() / "data"
    (folder / "data").mkdir()
    for path in (sample / "kuairand_pure_mini").glob("*.csv.gz"):
        with gzip.open(path, "rt") as old, gzip.open(folder / "data" / path.name, "wt") as new:
            header, *rows = old
            if not path.name.startswith("video"):
                rows = [row for row in rows if int(row.split(",")[0]) % 8 == 1]  # all ids in the sample are odd
            new.writelines([header, *rows])
    spec = yaml.safe_load((sample / "kuairand_mini.yaml").read_text())
    features = {"user": {"user_active_degree"}, "candidate": {"video_id", "tab"}}
    spec["features"] = {
        group: [feature for feature in spec["features"][group] if feature["name"] in names]
        for group, names in features.items()
    }
    spec["tasks"] = [task for task in spec["tasks"] if task["name"] in (FAVOURED, PAYS)]
    spec["score"] = f"{PAYS} * {FAVOURED}"
    spec["data"]["past"] |= {"sequences": {"watched": {"video_id": "impressions"}}, "feedback": {}}
    spec["sequences"] = [{"name": "watched", "length": 10, "features": ["video_id"], "feedback": [PAYS]}]
    spec["model"] = {"name": "din"}
    spec["training"] = {"epochs": 1, "batch_requests": 64, "optimizer": {"learning_rate": 0.01}, "seed": 1}
    spec["evaluation"] |= {"slices": [[], ["tab"]], "metrics": ["auc"], "served_requests": 0}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return {"SPEC": str(folder / "spec.yaml"), "DATA": str(folder / "data"), "OUT": str(folder / "out")}


@dataclass(frozen=True)
class Executed:
    """The notebooks after they ran, and the output folder of the pipeline that ran in them."""

    notebooks: dict[str, nbformat.NotebookNode]
    output: Path

    def text(self, name: str, containing: str) -> str:
        """What the one code cell that contains a string has printed and shown."""
        (cell,) = (cell for cell in code(self.notebooks[name]) if containing in cell.source)
        return shown(cell)

    def cards(self) -> list[dict[str, Any]]:
        """The model cards of all runs, the oldest first."""
        return [json.loads(path.read_text()) for path in sorted(self.output.glob("reports/*/*/model_card.json"))]


@pytest.fixture(scope="module")
@costly("slow")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    folder = tmp_path_factory.mktemp("notebooks")
    environment = {**os.environ, **write_problem(folder), "FAVOURED": FAVOURED, "WEIGHT": "1e4"}
    script, *paths = (str(repository() / path) for path in ("scripts/notebooks.py", *(f"notebooks/{n}" for n in NAMES)))
    command = [sys.executable, script, *paths, "--output", str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Executed({name: nbformat.read(folder / name, as_version=4) for name in NAMES}, folder / "out")


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(repository() / "notebooks" / name, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: nbformat.NotebookNode) -> str:
    parts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(parts)


def kinds(cell: nbformat.NotebookNode) -> list[tuple[str, list[str]]]:
    """What came out of a cell, without what it says."""
    return [(output.output_type, sorted(output.get("data", [output.get("name")]))) for output in cell.outputs]


def overall(card: dict[str, Any], task: str) -> dict[str, Any]:
    (entry,) = (
        entry
        for entry in card["quantitative_analysis"]["performance_metrics"]
        if (entry["task"], entry["type"], entry["slice"]) == (task, "auc", {})
    )
    return entry


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_was_executed_in_order_and_is_fit_to_read(name):
    path = repository() / "notebooks" / name
    text, cells = path.read_text(), code(committed(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for c in cells for output in c.outputs
    )
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 3
    assert not any(cell.metadata for cell in cells)
    assert len(text) < 600_000
    assert not re.search(r"[\"' (](/[a-z]+){2}", "\n".join(map(shown, cells))), "no path of the machine it was made on"


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs_without_a_warning_and_gives_what_the_committed_one_gives(executed, name):
    now, before = code(executed.notebooks[name]), code(committed(name))
    assert [cell.source for cell in now] == [cell.source for cell in before]
    assert [kinds(cell) for cell in now] == [kinds(cell) for cell in before]
    assert not re.search(LOGGED, "\n".join(map(shown, [*now, *before])), re.MULTILINE)


def test_quickstart_shows_what_was_measured_and_scores_the_whole_log(executed):
    first = executed.cards()[0]
    table = executed.text(NAMES[0], "headline(data)")
    assert "Blessed: every gated task keeps its bound" in table
    assert re.search(rf"{PAYS} .*{overall(first, PAYS)['value']:.4f}".replace("0.", r"0\."), table)
    impressions = first["model_parameters"]["counts"]["impressions_read"]
    duplicates = first["model_parameters"]["counts"]["duplicates_dropped"]
    assert f"{impressions - duplicates:,} impressions" in executed.text(NAMES[0], "score_log(")
    scored = (executed.output / "scores.csv").read_text().splitlines()
    assert len(scored) == 1 + impressions - duplicates


def test_seesaw_goes_on_from_the_cache_and_names_the_task_that_pays(executed):
    first, again, seesaw = executed.cards()
    assert executed.text(NAMES[1], "data = collect(run)").count("cached") == 8
    assert overall(again, PAYS) == overall(first, PAYS)
    verdict = executed.text(NAMES[1], "headline(seesaw)")
    assert verdict.startswith(f"Not blessed: {PAYS} got worse\nNothing was pushed")
    assert re.search(
        rf"{PAYS}: fail\. .*AUC fell by {-overall(seesaw, PAYS)['change']:.4f}".replace("0.", r"0\."), verdict
    )
    assert re.search(rf"{FAVOURED}: not gated\. .* too few", verdict)
    assert len(list(executed.output.glob("serving/*/*/saved_model.pb"))) == 1
    assert any("Not blessed: " in shown(cell) for cell in code(committed(NAMES[1]))), "its text says that the gate held"
