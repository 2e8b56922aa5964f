"""The code that a training runs, known without importing it: what its checkpoints and the Trainer's cache depend on."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

from transform.import_path import imported_packages
from transform.source_hash import source_files
from transform.spec.ranking_spec import RankingSpec

ROOMS = ("trainer.models", "trainer.heads", "trainer.losses")
_REGISTERED = re.compile(r"""^@[A-Z]+\.register\(["'](\w+)["']""", re.MULTILINE)
_NAMED = re.compile(r"""["']name["']: ["'](\w+)["']""")  # a default that a model's own code names: {"name": "mmoe"}


def chosen_names(spec: RankingSpec) -> tuple[str, ...]:
    """What a spec names that a training runs: the model, its head and loss, and the metric that is watched."""
    model, stopping = spec.model, spec.training.early_stopping
    return (
        model.name,
        *([model.head.name] if model.head else []),
        model.loss.name,
        *([stopping.metric] if stopping else []),
    )


def training_code(*chosen: str) -> tuple[str, ...]:
    """The modules that a training runs.

    Of the models, heads and losses only those count that the spec names, that a chosen model names as its default, and
    what registers none, as it is shared by all: one more of them trains nobody again.

    Args:
        *chosen: str. What the spec names, see `chosen_names`. Registered names, or import paths as
            `package.module:Class`.

    Returns:
        Importable names, for `source_hash`.

    Raises:
        ModuleNotFoundError: when there is no module of an import path.
    """
    packages = imported_packages(chosen)
    names = {*chosen, *(name for package in packages for name in _NAMED.findall(_source(package)))}
    return (
        *(
            f"transform.{room}"
            for room in ("errors", "extras", "feature_types", "features", "import_path", "list_text", "section", "spec")
        ),
        *(f"trainer.{room}" for room in ("layers", "metrics", "ops", "registry", "training")),
        *_of_rooms(names),
        *packages,
    )


def _of_rooms(chosen: set[str]) -> Iterator[str]:
    """The modules of the rooms, models first: what they name as a default is chosen too."""
    for room in ROOMS:
        for found in pkgutil.iter_modules(importlib.import_module(room).__path__):
            module = f"{room}.{found.name}"
            source = _source(module)
            registered = set(_REGISTERED.findall(source))
            if not registered or registered & chosen:
                chosen |= set(_NAMED.findall(source)) if registered else set()
                yield module


def _source(module: str) -> str:
    """All Python sources of a module or package, one behind the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path, _ in source_files(module) if path.suffix == ".py")
