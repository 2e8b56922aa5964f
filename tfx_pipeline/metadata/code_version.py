"""A hash of the code that a component runs, so that TFX's cache sees an edit."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path

SUFFIXES = (".py", ".cc", ".h")
LIBRARIES = ("apache-beam", "keras", "tensorflow", "tensorflow-transform", "tensorflow-model-analysis", "tfx")


def code_version(*modules: str) -> str:
    """Hashes the sources of packages and modules, and the versions of the libraries that they stand on.

    TFX knows a function by its name alone: without the hash, an edited model would be answered from the cache.

    Args:
        *modules: str. Importable names; a package stands for all files below it.

    Returns:
        A short hex digest.
    """
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in LIBRARIES).encode())
    for name in modules:
        for path, relative in source_files(name):
            digest.update(f"{name}/{relative}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def source_files(module: str) -> list[tuple[Path, Path]]:
    """A module's sources, each with its path relative to the module's folder; of a package all below it, with C++."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"An importable module is expected. Received: `{module}`.")
    origin = Path(found.origin)
    paths = [origin]
    if origin.name == "__init__.py":
        paths = sorted(path for path in origin.parent.rglob("*") if path.suffix in SUFFIXES)
    return [(path, path.relative_to(origin.parent)) for path in paths]
