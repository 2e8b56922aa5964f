"""Writes docs/spec.md, every key of a spec file, from the schema and the models: `make docs`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from trainer.heads.registry import HEADS
from trainer.losses.registry import LOSSES
from trainer.models.registry import MODELS, takes_head
from trainer.registry import Registry
from transform.feature_types.base import Feature, feature_types
from transform.section import NAME_PATTERN, Section
from transform.spec.metric_table import METRIC_PATTERN, METRICS
from transform.spec.model_sections import COMPONENT_PATTERN
from transform.spec.ranking_spec import RankingSpec

PAGE = Path(__file__).with_name("spec.md")
HEAD = """# The spec file, key by key

<!-- Written by docs/make_spec_reference.py (make docs) from the schema: edit transform/spec or a model instead. -->

A spec is one YAML file; [README.md](../README.md) has a small one that runs. Types are written as in YAML: [name, ...]
is a list, {name: text} a mapping. A *name* has lower-case letters, digits and `_`, and begins with a letter; no two of
tasks, features and sequences have the same. A *metric* is one of [metrics](#metrics). An unknown key is rejected, and
so is a key that stands twice.
[troubleshooting.md](troubleshooting.md) has the messages.

"""
METRICS_HEAD = """### Metrics

Of each task, over the labelled candidates of a split; `k` in `ndcg@k` is a whole number. The metric that early stopping
watches is measured after each epoch too. So is, by `onerank train`, what `evaluation.metrics` names by an import path;
the pipeline's Trainer does not see `evaluation`, so that a new metric trains nothing again.

"""
METRICS_FOOT = """A metric of your own is an object in a module of yours. The spec names it by its import path where
a metric is expected, as in `metrics: [auc, "my_package.metrics:recall"]`, and training, the Evaluator, gates and the
report use it. The module has to be importable wherever these run: install its package, or put its folder into
`PYTHONPATH`.

```python
import math

from onerank import Metric


def recall_at_half(labels, scores):
    \"\"\"The share of positives with a probability above a half.\"\"\"
    return float((scores[labels > 0.5] > 0.5).mean()) if labels.any() else math.nan


recall = Metric("recall at 0.5", direction="higher", best=1.0, bound=0.0, function=recall_at_half)
```

The function takes, by these names, some of `labels` (0 or 1), `scores` (probabilities), `groups` (what names the
request) and `weights` (above 0): numpy arrays with one entry for each labelled candidate of the task. Where it is
undefined, it returns NaN, which no gate passes. Without candidates, or when a score is not finite, it is not called and
the metric is NaN.

"""
WORDS = {NAME_PATTERN: "name", METRIC_PATTERN: "metric", COMPONENT_PATTERN: "name or import path"}
REGISTRIES: dict[str, Registry[Any]] = {"model": MODELS, "model.head": HEADS, "model.loss": LOSSES}


def page() -> str:
    """The whole page."""
    found = sections(RankingSpec)
    places = {cls: paths[0] for paths, cls in found}
    parts = [HEAD, _root(places)]
    for paths, cls in found[1:]:
        parts.append(f"{'##' if '.' not in paths[0] else '###'} `{paths[0]}`\n\n{inspect.getdoc(cls)}")
        if len(paths) > 1:
            parts.append(f" The same at {', '.join(f'`{path}`' for path in paths[1:])}.")
        parts.append("\n\n" + _table(cls, places, with_examples=True))
        if registry := REGISTRIES.get(paths[0]):
            parts += [_component(paths[0], name, cls, registry) for name, cls in registry.classes().items()]
        if paths[0] == "evaluation":
            parts.append(_metrics())
        if cls is Feature:
            parts += [_feature_type(name, feature_type, places) for name, feature_type in feature_types().items()]
    return "".join(parts).rstrip() + "\n"


def sections(root: type[Section]) -> list[tuple[list[str], type[Section]]]:
    """The sections of a file in its order, each with all paths that lead to it; that of the root is empty."""
    found: dict[type[Section], list[str]] = {root: [""]}

    def walk(cls: type[Section], path: str) -> None:
        for key, field in cls.known_fields().items():
            for suffix, inner in inner_sections(field.annotation):
                place = f"{path}.{key}".lstrip(".") + suffix
                found.setdefault(inner, []).append(place)
                walk(inner, place)

    walk(root, "")
    return [(paths, cls) for cls, paths in found.items()]


def inner_sections(annotation: Any) -> Iterator[tuple[str, type[Section]]]:
    """The section inside an annotation, and how a path goes on to it: `[]` in a list, `.<name>` in a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield "", annotation
        return
    step = {tuple: "[]", dict: ".<name>"}.get(getattr(annotation, "__origin__", None), "")
    for part in get_args(annotation):
        yield from ((step + suffix, cls) for suffix, cls in inner_sections(part))


# === Tables ===


def _root(places: dict[type[Section], str]) -> str:
    """The keys of the file, and the examples of all of them as one file."""
    whole = {key: (field.examples or [None])[0] for key, field in RankingSpec.model_fields.items()}
    text = yaml.safe_dump(whole, default_flow_style=None, sort_keys=False, width=110)
    return f"{_table(RankingSpec, places, with_examples=False)}All of them once:\n\n```yaml\n{text}```\n\n"


def _feature_type(name: str, cls: type[Feature], places: dict[type[Section], str]) -> str:
    """The keys that a feature has for its type."""
    own = [key for key in cls.model_fields if key not in Feature.model_fields]
    table = _table(cls, places, with_examples=True, keys=own) if own else ""
    return f"#### `type: {name}`\n\n{inspect.getdoc(cls)}\n\n{table}"


def _table(cls: type[Section], places: dict[type[Section], str], with_examples: bool, keys: Sequence[str] = ()) -> str:
    """A row for each key of a section, or for some of its keys."""
    properties = cls.model_json_schema(ref_template="{model}")["properties"]
    sections_by_name = {section.__name__: place for section, place in places.items()}
    rows = []
    for key, field in [(key, cls.model_fields[key]) for key in keys or cls.model_fields]:
        row = [f"`{key}`", _type(properties[key], sections_by_name), _default(field), _line(field.description)]
        examples = ", ".join(f"`{key}: {_yaml(example)}`" for example in field.examples or [])
        rows.append([*row, examples] if with_examples else row)
    return _markdown(["key", "type", "default", "meaning", *(["example"] if with_examples else [])], rows)


def _metrics() -> str:
    """The table of metrics, and how to bring one's own."""
    better = {"higher": "higher", "lower": "lower", "target": "nearer to {best:g}", "none": "no direction"}
    rows = [
        [
            f"`{metric.name}`",
            metric.title,
            better[metric.direction].format(best=metric.best),
            f"`{metric.bound:g}`" if metric.has_direction and metric.role == "chosen" else "",
            {"chosen": "the spec asks for it", "always": "always", "count": "always"}[metric.role],
            "yes" if metric.in_epochs else "",
        ]
        for metric in METRICS
    ]
    head = ["metric", "in tables", "better", "a gate's bound by default", "reported", "after each epoch"]
    return METRICS_HEAD + _markdown(head, rows) + METRICS_FOOT


def _component(place: str, name: str, cls: type, registry: Registry[Any]) -> str:
    """The settings of a model, head or loss: types and meanings from the docstring, defaults from the constructor."""
    summary, _, _ = (inspect.getdoc(cls) or "").partition("\n")
    settings = component_settings(cls, registry.settings(cls))
    rows = [[f"`{key}`", type_, f"`{_yaml(default)}`", meaning] for key, (type_, default, meaning) in settings.items()]
    defaults = _yaml({"name": name, **{key: default for key, (_, default, _) in settings.items()}})
    table = _markdown(["key", "type", "default", "meaning"], rows)
    more = f" See [{name}.md]({name}.md)." if PAGE.with_name(f"{name}.md").exists() else ""
    more += " It takes any head, see [`model.head`](#modelhead)." if takes_head(cls) else ""
    *_, section = place.split(".")
    example = f"model: {defaults}" if section == "model" else f"model: {{{section}: {defaults}}}"
    return f"### `{place}.name: {name}`\n\n{summary}{more}\n\n{table}```yaml\n{example}\n```\n\n"


def component_settings(cls: type, known: Sequence[str]) -> dict[str, tuple[str, Any, str]]:
    """Type, default and meaning of each setting; a setting without a line in `Args:` has no meaning."""
    args = re.search(r"^Args:\n((?: {4,}.*\n|\n)*)", (inspect.getdoc(cls) or "") + "\n", re.MULTILINE)
    told = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", args[1] if args else "", re.MULTILINE)
    lines = {key: _line(text) for key, text in told}
    settings = {}
    for key, parameter in inspect.signature(cls.__init__).parameters.items():
        if key in known:
            kind, _, meaning = re.sub(r"\s*Defaults to `?[^`]*`?\.", "", lines.get(key, "")).partition(". ")
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            settings[key] = (kind.rstrip("."), default, meaning.replace('"', ""))
    return settings


# === Texts ===


def _type(schema: dict[str, Any], places: dict[str, str]) -> str:
    """A JSON schema as YAML would be written, limits behind it."""
    shape, limits = _shape(schema, places), _limits(schema)
    return f"{shape}, {limits}" if limits else shape


def _shape(schema: dict[str, Any], places: dict[str, str]) -> str:
    if "$ref" in schema:
        return f"[section](#{anchor(places[schema['$ref']])})"
    if "anyOf" in schema:
        return " or ".join(_type(part, places) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{_yaml(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"[{', '.join(_type(part, places) for part in schema['prefixItems'])}]"
    if schema["type"] == "array":
        return f"[{_shape(schema['items'], places)}, ...]"
    if schema["type"] == "object":
        values = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
        return f"{{name: {_type(values[0], places)}}}"
    if schema["type"] == "string":
        return WORDS.get(schema.get("pattern", ""), "text")
    return {"integer": "whole number", "number": "number", "boolean": "true or false"}[schema["type"]]


def _limits(schema: dict[str, Any]) -> str:
    if "maximum" in schema:
        return f"{schema['minimum']:g} to {schema['maximum']:g}"
    if "exclusiveMinimum" in schema:
        least = schema["exclusiveMinimum"]
        return "1 or more" if schema["type"] == "integer" and least == 0 else f"above {least:g}"
    if "minimum" in schema:
        return f"{schema['minimum']:g} or more"
    return "at least one" if schema.get("minItems") == 1 else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    if isinstance(default, BaseModel):
        return "its defaults"
    return f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    """A value in one line of YAML."""
    plain = [TypeAdapter(Any).dump_python(value, mode="json", exclude_defaults=True)]
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6).strip()[1:-1]


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines) + "\n"


def anchor(path: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", path.lower()).replace(" ", "-")


if __name__ == "__main__":
    unfinished = PAGE.with_suffix(".unfinished")
    unfinished.write_text(page(), encoding="utf-8")
    os.replace(unfinished, PAGE)
