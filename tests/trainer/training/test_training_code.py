"""What counts as the code of a training: not what the spec does not name, and what it names outside this project."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.heads.registry import HEADS
from trainer.losses.registry import LOSSES
from trainer.models.registry import MODELS
from trainer.training import training_code as module
from trainer.training.training_code import training_code
from transform.import_path import imported_packages
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
        "some_heads/base.py": '# no @HEADS.register("mmoe") at the start of a line\n',
        "some_heads/mmoe.py": '@HEADS.register("mmoe")\nclass MMoE: ...\n',
        "some_heads/levels/__init__.py": "",
        "some_heads/levels/gates.py": "",
        "some_heads/levels/head.py": "@HEADS.register('ple')\nclass PLE: ...\n@HEADS.register('cgc')\nclass CGC: ...\n",
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
    assert imported_packages(names) == ("mine", "my_losses")
    assert set(training_code(*names)) - set(training_code("pointwise")) == {"mine", "my_losses"}
    assert {str(relative) for _, relative in source_files("mine")} >= {"rankers.py", "layers/gate.py"}
    before = source_hash(imported_packages(names), ())
    for path in ("mine/layers/gate.py", "my_losses.py"):
        kept = (tmp_path / path).read_text()
        (tmp_path / path).write_text(kept + "\nB = 2\n")
        assert source_hash(imported_packages(names), ()) != before, path
        (tmp_path / path).write_text(kept)
    (tmp_path / "unused.py").write_text("C = 3")
    assert source_hash(imported_packages(names), ()) == before


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="Received: `nowhere`"):
        source_hash(imported_packages(["nowhere.models:MyRanker"]), ())


def test_a_default_that_a_model_names_counts(tmp_path, monkeypatch):
    assert "trainer.heads.shared_bottom" in training_code("din"), "DIN's own default"
    assert "trainer.heads.mmoe" not in training_code("din") and "trainer.heads.mmoe" in training_code("din", "mmoe")
    assert not {"trainer.heads.shared_bottom", "trainer.heads.mmoe"} & set(training_code("onerank"))
    write(tmp_path, {"named.py": 'HEAD = {"name": "single_task", "hidden": [8]}'})
    monkeypatch.syspath_prepend(tmp_path)
    assert "trainer.heads.single_task" in training_code("named:MyRanker")


def test_what_a_chosen_class_is_made_from_counts(tmp_path, monkeypatch):
    write(tmp_path, {"based.py": "from trainer.models.din.model import DIN\n\n\nclass MyDIN(DIN): ...\n"})
    write(
        tmp_path,
        {"heads_of_mine.py": "from trainer.heads.mmoe import MMoE\n", "other.py": 'X = {"name": "based:MyDIN"}'},
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert {"based", "trainer.models.din", "trainer.heads.shared_bottom"} <= set(training_code("based:MyDIN"))
    assert {"heads_of_mine", "trainer.heads.mmoe"} <= set(training_code("onerank", "heads_of_mine:Mine"))
    assert {"other", "based", "trainer.models.din"} <= set(training_code("other:Mine")), "a default by import path"
    assert not {"trainer.models.onerank", "trainer.heads.mmoe"} & set(training_code("based:MyDIN"))


def test_every_registered_name_is_found_in_its_file():
    """The sources are read without importing them: what the pattern misses would not be in the key."""
    for registry, room in ((MODELS, "models"), (HEADS, "heads"), (LOSSES, "losses")):
        for name, cls in registry.classes().items():
            assert cls.__module__.startswith(f"trainer.{room}.")
            module = ".".join(cls.__module__.split(".")[:3])
            assert module in training_code(name) and module not in training_code("nothing"), name
