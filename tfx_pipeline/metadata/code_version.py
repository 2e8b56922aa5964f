"""A hash of the code that a component runs, so that TFX's cache sees an edit."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path

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
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(f"An importable module is expected. Received: `{name}`.")
        origin = Path(found.origin)
        paths = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for path in paths:
            digest.update(f"{name}/{path.relative_to(origin.parent)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
