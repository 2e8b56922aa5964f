"""Reading a spec: YAML becomes a `RankingSpec`, and every error one line that says where, what, and how to fix it."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from transform.errors import SpecError
from transform.section import NAME_PATTERN, Section
from transform.spec.metric_table import METRIC_PATTERN, metric_expected
from transform.spec.model_sections import COMPONENT_PATTERN
from transform.spec.ranking_spec import RankingSpec
from transform.spec.references import broken_imports, broken_references


def load_spec(path: str | Path) -> RankingSpec:
    """Reads and checks a spec file.

    What the file names by an import path is imported too, to be checked. `parse_spec` does not import it: a spec that
    is handed on, as inside an exported model, is read where the user's own code may not be installed.

    Args:
        path: str or Path. A YAML file.

    Returns:
        The spec.

    Raises:
        SpecError: when the file can't be read, is no YAML, breaks the data contract, or names code that can't be
            imported.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: a readable YAML file in UTF-8 is expected. Received: {error}.") from error
    spec = parse_spec(text, origin=str(path))
    problems = [f"{path}: {problem}" for problem in broken_imports(spec)]
    if problems:
        raise SpecError("\n".join(problems))
    return spec


def parse_spec(text: str, origin: str = "spec") -> RankingSpec:
    """Reads and checks a spec given as YAML (or JSON) text; `origin` names it in error messages."""
    try:
        content = _read_json(text) or yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        # the first line says what, the rest where; the name of the text is PyYAML's own
        told = " ".join(str(error).replace(' in "<unicode string>",', " in").split())
        raise SpecError(f"{origin}: YAML is expected. Received: {told}. Correct the line.") from error
    if not isinstance(content, dict):
        raise SpecError(f"{origin}: a mapping with `name`, `data`, `tasks` ... is expected. Received: {content!r}.")
    try:
        spec = RankingSpec.model_validate(content)
    except ValidationError as error:
        raise SpecError("\n".join(_describe(origin, problem) for problem in _causes(error.errors()))) from error
    problems = [f"{origin}: {problem}" for problem in broken_references(spec)]
    if problems:
        raise SpecError("\n".join(problems))
    return spec.with_as_of(spec.split.as_of)


# === JSON and YAML ===


def _read_json(text: str) -> Any:
    """What `RankingSpec.to_json` wrote, which YAML would not read as JSON does; None for all else."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except ValueError:
        return None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise json.JSONDecodeError("a key twice", "", 0)  # YAML's reader says which, and where
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """Reads `1e-5` as a number, as JSON and everyone else do, and rejects a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                problem = f"the key `{key}` stands twice in one section"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


# === Mistakes ===


def _causes(problems: list[Any]) -> list[Any]:
    """The problems without those that only follow from others: a list whose one element is wrong is no short list."""
    places = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(place != problem["loc"] and place[: len(problem["loc"])] == problem["loc"] for place in places)
    ]


_NAME = "a name in lower-case letters, digits and _ is expected, as `my_name`"
_PATTERNS = {
    NAME_PATTERN: _NAME,
    METRIC_PATTERN: metric_expected(),
    COMPONENT_PATTERN: f"{_NAME}, or an import path, as `package.module:Name`",
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text"}


def _describe(origin: str, problem: Any) -> str:
    """One pydantic problem as path in the file, what was expected, what was received and the cure."""
    location = list(problem["loc"])
    path = _path(location)
    kind, received = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        cure = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(known)}."
        return f"{origin}: {path}: a known key is expected. Received: `{location[-1]}`. {cure}"
    if kind == "missing":
        cure = "Give the pair [first, last]." if isinstance(location[-1], int) else f"Add the key `{location[-1]}`."
        return f"{origin}: {path}: a value is expected. Received: nothing. {cure}"
    text = problem["msg"].removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        text = _PATTERNS[problem["ctx"]["pattern"]]
    elif kind == "model_type":
        text = "a section is expected, as {key: value}; to have its defaults, leave it out"
    elif kind == "tuple_type":
        text = "a list is expected, as [a, b]"
    elif (what := kind.partition("_")[0]) in _KINDS and kind.endswith(
        ("_type", "_parsing", "_parsing_size", "_from_float")
    ):
        text = f"{_KINDS[what]} is expected"
    elif kind == "literal_error":
        near = difflib.get_close_matches(str(received), re.findall(r"'([^']*)'", problem["ctx"]["expected"]), 1)
        cure = f" Did you mean `{near[0]}`?" if near else ""
        return f"{origin}: {path}: {problem['ctx']['expected']} is expected. Received: {_short(received)}.{cure}"
    return f"{origin}: {path}: {text}. Received: {_short(received)}."


def _path(location: list[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "(the whole file)"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def _known_keys(location: list[str | int]) -> list[str]:
    """The keys of the section at a place in the file."""
    annotation: type[Section] | None = RankingSpec
    for part in location:
        if isinstance(part, int):
            continue
        fields = annotation.known_fields() if annotation else {}
        annotation = _section_class(fields[part].annotation) if part in fields else annotation
    return sorted(annotation.known_fields()) if annotation else []


def _section_class(annotation: Any) -> type[Section] | None:
    """The section class inside an annotation such as `tuple[Task, ...]` or `Past | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = [_section_class(part) for part in getattr(annotation, "__args__", ())]
    return next((part for part in inner if part is not None), None)
