"""What counts as the code of a training: not what the spec does not name, and what it names outside this project."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.training import training_code as module
from trainer.training.training_code import imported_code, training_code
from transform.source_hash import source_files, source_hash


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """A room with what is shared, a head in a file, and two in a folder."""
    files = {
        "some_heads/__init__.py": "",
        "some_heads/base.py": '# no @register_head("mmoe") at the start of a line\n',
        "some_heads/mmoe.py": '@register_head("mmoe")\nclass MMoE: ...\n',
        "some_heads/levels/__init__.py": "",
        "some_heads/levels/gates.py": "",
        "some_heads/levels/head.py": "@register_head('ple')\nclass PLE: ...\n@register_head('cgc')\nclass CGC: ...\n",
    }
    write(tmp_path, files)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "ROOMS", ("some_heads",))


@pytest.mark.parametrize(
    ("chosen", "there"),
    [
        (["onerank"], {"base"}),
        (["onerank", "mmoe"], {"base", "mmoe"}),
        (["onerank", "ple"], {"base", "levels"}),
        (["onerank", "cgc", "pointwise"], {"base", "levels"}),
    ],
)
def test_of_a_room_what_is_shared_and_what_is_chosen_counts(rooms, chosen, there):
    assert {name for name in training_code(*chosen) if name.startswith("some_heads")} == {
        f"some_heads.{name}" for name in there
    }


def test_a_model_that_is_registered_is_found_in_its_folder():
    for name, other in (("onerank", "din"), ("din", "onerank")):
        found = training_code(name)
        assert f"trainer.models.{name}" in found and f"trainer.models.{other}" not in found
        assert {"trainer.models.base", "trainer.models.registry"} <= set(found)


@pytest.mark.parametrize("marker", [{"mine/__init__.py": ""}, {}], ids=["a package", "a folder without __init__.py"])
def test_code_outside_the_project_counts_by_its_whole_package(tmp_path, monkeypatch, marker):
    write(tmp_path, {**marker, "mine/rankers.py": "class MyRanker: ...", "mine/layers/gate.py": "A = 1"})
    write(tmp_path, {"my_losses.py": "class MyLoss: ...", "unused.py": ""})
    monkeypatch.syspath_prepend(tmp_path)
    names = ("mine.rankers:MyRanker", "my_losses:MyLoss", "pointwise")
    assert imported_code(*names) == ("mine", "my_losses")
    assert set(training_code(*names)) - set(training_code("pointwise")) == {"mine", "my_losses"}
    assert {str(relative) for _, relative in source_files("mine")} >= {"rankers.py", "layers/gate.py"}
    before = source_hash(imported_code(*names), ())
    for path in ("mine/layers/gate.py", "my_losses.py"):
        kept = (tmp_path / path).read_text()
        (tmp_path / path).write_text(kept + "\nB = 2\n")
        assert source_hash(imported_code(*names), ()) != before, path
        (tmp_path / path).write_text(kept)
    (tmp_path / "unused.py").write_text("C = 3")
    assert source_hash(imported_code(*names), ()) == before


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="Received: `nowhere`"):
        source_hash(imported_code("nowhere.models:MyRanker"), ())
