"""The code that a training runs, known without importing it: what its checkpoints and the Trainer's cache depend on."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

from transform.source_hash import source_files

ROOMS = ("trainer.models", "trainer.heads", "trainer.losses")
_REGISTERED = re.compile(r"""^@register_\w+\(["'](\w+)["']""", re.MULTILINE)


def training_code(*chosen: str) -> tuple[str, ...]:
    """The modules that a training runs.

    Of the models, heads and losses only those count that the spec names, and what registers none, as it is shared by
    all: one more of them trains nobody again.

    Args:
        *chosen: str. What the spec names: the model, and its head and loss where it names them. A registered name, or
            an import path as `package.module:Class`.

    Returns:
        Importable names, for `source_hash`.

    Raises:
        ModuleNotFoundError: when there is no module of an import path.
    """
    return (
        *("transform.errors", "transform.extras", "transform.spec", "transform.features"),
        *(f"trainer.{room}" for room in ("layers", "metrics", "ops", "training")),
        *(module for room in ROOMS for module in _of_room(room, set(chosen))),
        *imported_code(*chosen),
    )


def imported_code(*names: str) -> tuple[str, ...]:
    """The modules outside this project that a spec names: all of the top-level package, or a module that is no package.

    Args:
        *names: str. Import paths, as `package.module:Class`. Names without a colon are left out: they are registered.

    Returns:
        Importable names, each once, for `source_hash`.
    """
    return tuple(sorted({name.split(":")[0].split(".")[0] for name in names if ":" in name}))


def _of_room(room: str, chosen: set[str]) -> Iterator[str]:
    for found in pkgutil.iter_modules(importlib.import_module(room).__path__):
        module = f"{room}.{found.name}"
        sources = [path.read_text() for path, _ in source_files(module) if path.suffix == ".py"]
        registered = {name for source in sources for name in _REGISTERED.findall(source)}
        if not registered or registered & chosen:
            yield module
