"""What the pages of docs/ state is what the code has."""

import ast
import copy
import inspect
import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

from docs import make_spec_reference
from trainer.losses.pointwise import PointwiseLoss
from trainer.models.onerank.model import OneRank
from transform.errors import SpecError
from transform.spec.loading import parse_spec
from transform.spec.model_sections import Loss, Model, Training
from transform.spec.ranking_spec import RankingSpec

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md")))]
OTHER_PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]

WHOLE = {key: field.examples[0] for key, field in RankingSpec.model_fields.items()}
KEYS = [
    (paths, key, field)
    for paths, section in make_spec_reference.sections(RankingSpec)
    for key, field in section.known_fields().items()
]
EXCLUDES = {"id": "group_by"}


# === Links ===


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_every_linked_file_is_there(page):
    path = ROOT / page
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(((?!https?:|#)[^)#]+)", prose)
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_links_to_every_page():
    readme = (ROOT / "README.md").read_text()
    assert [page for page in PAGES[1:] if f"({page})" not in readme] == []


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_every_linked_heading_is_there(page):
    path = ROOT / page
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)#([^)]+)\)", path.read_text()):
        text = (path.parent / target if target else path).read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in [make_spec_reference.anchor(heading) for heading in headings], (target, anchor)


# === README.md ===


@pytest.mark.parametrize("place", make_spec_reference.REGISTRIES)
def test_the_readme_has_a_table_of_all_models_heads_and_losses(place):
    text = (ROOT / "README.md").read_text()
    _, _, table = text.partition(f"| `{place}.name` | |\n|---|---|\n")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table.partition("\n\n")[0], re.MULTILINE))
    assert sorted(rows) == list(make_spec_reference.REGISTRIES[place].classes())


# === docs/onerank.md ===


def test_settings_and_defaults_are_those_of_the_code():
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "onerank.md").read_text(), re.DOTALL)
    (stated,) = (content for block in blocks if "training" in (content := yaml.safe_load(block)))
    model = dict(stated["model"])
    loss = {
        "name": Loss().name,
        **{key: inspect.signature(PointwiseLoss).parameters[key].default for key in ("infonce", "temperature")},
    }
    assert model.pop("name") == "onerank" and model.pop("loss") == loss
    parameters = inspect.signature(OneRank.__init__).parameters
    for_ablation = {"task_tokens", "descriptor", "candidate_attention"}
    assert set(parameters) - {"self", "inputs", "kwargs"} == set(model) | for_ablation
    assert model == {name: parameters[name].default for name in model}
    assert stated["training"] == {name: Training().model_dump()[name] for name in stated["training"]}


# === docs/spec.md ===


def test_the_spec_reference_is_what_the_schema_gives():
    assert make_spec_reference.PAGE.read_text() == make_spec_reference.page(), "Run `make docs`."


@pytest.mark.parametrize("paths, key, field", KEYS, ids=[f"{paths[0]}.{key}".lstrip(".") for paths, key, _ in KEYS])
def test_every_key_has_a_meaning_and_examples_that_are_accepted(paths, key, field):
    assert field.description, "Write the meaning below the key."
    assert field.examples, "Give an example: Field(..., examples=[...])."
    for example in field.examples:
        problems = []
        places = [[*filter(None, path.split(".")), key] for path in paths]
        for content in chain.from_iterable(contents_with(WHOLE, place, RankingSpec, example) for place in places):
            try:
                parse_spec(yaml.safe_dump(content))
                break
            except SpecError as error:
                problems.append(str(error))
        else:
            pytest.fail(f"{example!r} is accepted nowhere:\n" + "\n".join(problems))


def contents_with(content, path, section, example):
    """Copies of a file's content with the example at a path, one for each element of the lists on the way.

    A section that is not there is put there first, as its key's own examples have it; a short form counts as empty.
    """
    key, *rest = path
    name = key.removesuffix("[]")
    content = {other: value for other, value in copy.deepcopy(content).items() if other != EXCLUDES.get(name)}
    if not rest:
        yield {**content, name: example}
        return
    field = section.known_fields()[name]
    (inner,) = {cls for _, cls in make_spec_reference.inner_sections(field.annotation)}
    for value in [content[name]] if name in content else field.examples:
        if key.endswith("[]"):
            for place in range(len(value)):
                for changed in contents_with(value[place], rest, inner, example):
                    yield {**content, name: [*value[:place], changed, *value[place + 1 :]]}
        elif rest[0] == "<name>":
            for entry in value:
                for changed in contents_with(value[entry], rest[1:], inner, example):
                    yield {**content, name: {**value, entry: changed}}
        else:
            for changed in contents_with(value if isinstance(value, dict) else {}, rest, inner, example):
                yield {**content, name: changed}


@pytest.mark.parametrize(
    ("place", "name"),
    [(place, name) for place, registry in make_spec_reference.REGISTRIES.items() for name in registry.classes()],
)
def test_every_setting_has_a_meaning_and_a_default_that_is_accepted(place, name):
    registry = make_spec_reference.REGISTRIES[place]
    cls = registry.classes()[name]
    settings = make_spec_reference.component_settings(cls, registry.settings(cls))
    assert [key for key, (kind, _, meaning) in settings.items() if not kind or not meaning] == []
    _, _, part = make_spec_reference.PAGE.read_text().partition(f"### `{place}.name: {name}`")
    model = Model(**yaml.safe_load(re.search(r"```yaml\n(.*?)```", part, re.DOTALL)[1])["model"])
    chosen = {"model": model, "model.head": model.head, "model.loss": model.loss}[place]
    assert set(chosen.settings) == set(settings)
    registry.find(name, chosen.settings, place)


# === docs/troubleshooting.md ===


def quoted_messages():
    """The messages in the first column of the page, as the pieces between what varies."""
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| (`+)(.+?)\1 \|", text, re.MULTILINE)
    return [tuple(piece.strip() for piece in message.split("…")) for _, message in quoted]


def texts_of_the_code():
    """Every text in the packages, with \\0 for what is filled in; and those that tell of a user's mistake."""
    texts, of_mistakes = set(), set()
    for package in ("onerank", "transform", "trainer", "serving", "tfx_pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            tree, is_spec = ast.parse(path.read_text()), path.parent.name in ("spec", "feature_types")
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if id(node) not in docstrings:
                    texts.add(text(node))
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    known = {"SpecError", "DataError", "PipelineError"} | ({"ValueError"} if is_spec else set())
                    if getattr(node.exc.func, "id", "") in known:
                        of_mistakes.add(text(node.exc.args[0]))
                elif isinstance(node, ast.Yield) and is_spec:  # what refers from one section to another
                    of_mistakes.add(text(node.value))
    return texts, of_mistakes


def text(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def holds(text, pieces):
    return re.search(".*".join(map(re.escape, pieces)), text, re.DOTALL) is not None


def test_every_quoted_message_is_in_the_code():
    texts, _ = texts_of_the_code()
    assert len(quoted_messages()) > 100
    assert ["…".join(pieces) for pieces in quoted_messages() if not any(holds(text, pieces) for text in texts)] == []


def test_every_message_of_the_code_is_quoted():
    _, of_mistakes = texts_of_the_code()
    own = [text for text in of_mistakes if re.search(r"[^\0]{12}", text.replace("Received:", "\0"))]  # others hand on
    quoted = [pieces for pieces in quoted_messages() if max(map(len, pieces)) > 10]
    missing = [text for text in own if not any(holds(text, pieces) for pieces in quoted)]
    assert missing == [], "Add them to docs/troubleshooting.md."
