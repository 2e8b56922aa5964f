"""The code that a training runs, known without importing it: what its checkpoints and the Trainer's cache depend on."""

from __future__ import annotations

import importlib
import pkgutil
import re

from transform.import_path import imported_packages
from transform.source_hash import source_files
from transform.spec.model_sections import Model
from transform.spec.ranking_spec import RankingSpec

ROOMS = ("trainer.models", "trainer.heads", "trainer.losses")
_REGISTERED = re.compile(r"""^@[A-Z]+\.register\(["'](\w+)["']""", re.MULTILINE)
_NAMED = re.compile(r"""["']name["']: *["']([^"']+)["']""")  # a default that code names: {"name": "mmoe"}
_IMPORTED = re.compile(r"\btrainer\.(?:models|heads|losses)\.\w+")


def chosen_names(spec: RankingSpec) -> tuple[str, ...]:
    """What a spec names that a training runs: the model, its head and loss, and the metric that is watched."""
    stopping = spec.training.early_stopping
    return (*component_names(spec.model), *([stopping.metric] if stopping else []))


def component_names(model: Model) -> tuple[str, ...]:
    """The names of the model, of its head if the spec names one, and of its loss."""
    return (model.name, *([model.head.name] if model.head else []), model.loss.name)


def training_code(*chosen: str) -> tuple[str, ...]:
    """The modules that a training runs.

    Of the models, heads and losses only those count that the spec names, that those name as a default or import, and
    what registers none, as it is shared by all: one more of them trains nobody again.

    Args:
        *chosen: str. What the spec names, see `chosen_names`. Registered names, or import paths as
            `package.module:Class`.

    Returns:
        Importable names, for `source_hash`.

    Raises:
        ModuleNotFoundError: when there is no module of an import path.
    """
    return (
        *(
            f"transform.{room}"
            for room in ("errors", "extras", "feature_types", "features", "import_path", "list_text", "section", "spec")
        ),
        *(f"trainer.{room}" for room in ("layers", "metrics", "ops", "registry", "training")),
        *sorted(_of_rooms(set(chosen))),
    )


def _of_rooms(names: set[str]) -> set[str]:
    """The modules of the rooms and the packages outside this project, with all that they name or import."""
    sources = {
        f"{room}.{found.name}": _source(f"{room}.{found.name}")
        for room in ROOMS
        for found in pkgutil.iter_modules(importlib.import_module(room).__path__)
    }
    registered = {module: set(_REGISTERED.findall(source)) for module, source in sources.items()}
    found = {module for module in sources if not registered[module]}  # shared by all
    followed: set[str] = set()
    while True:
        found |= {module for module in sources if registered[module] & names} | set(imported_packages(names))
        if not found - followed:
            return found
        for module in found - followed:
            source = sources.get(module) or _source(module)
            imported = set(_IMPORTED.findall(source)) & sources.keys()
            if module not in sources or registered[module]:  # defaults may stand in what it is made from
                names = names.union(*(_NAMED.findall(text) for text in (source, *(sources[name] for name in imported))))
            found |= imported
            followed.add(module)


def _source(module: str) -> str:
    """All Python sources of a module or package, one behind the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path, _ in source_files(module) if path.suffix == ".py")
