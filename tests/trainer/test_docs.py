"""What docs/onerank.md states about settings is what the code has."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from trainer.models.onerank import OneRank
from transform.spec_sections import Loss, Training

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_settings_and_defaults_are_those_of_the_code():
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "onerank.md").read_text(), re.DOTALL)
    (stated,) = (content for block in blocks if "training" in (content := yaml.safe_load(block)))
    model = dict(stated["model"])
    assert model.pop("name") == "onerank" and model.pop("loss") == Loss().model_dump()
    parameters = inspect.signature(OneRank.__init__).parameters
    for_ablation = {"task_tokens", "descriptor", "candidate_attention"}
    assert set(parameters) - {"self", "inputs", "kwargs"} == set(model) | for_ablation
    assert model == {name: parameters[name].default for name in model}
    assert stated["training"] == {name: Training().model_dump()[name] for name in stated["training"]}


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in DOCS.glob("*.md"))])
def test_every_linked_file_is_there(page):
    path = DOCS.parent / page
    links = re.findall(r"\]\(((?!https?:|#)[^)#]+)", path.read_text())
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []
