"""A hash of code: two processes with the same hash compute the same."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

SUFFIXES = (".py", ".cc", ".h")


def source_hash(modules: Iterable[str], libraries: Iterable[str]) -> str:
    """Hashes the sources of packages and modules, and the versions of the libraries that they stand on.

    Args:
        modules: iterable of str. Importable names; a package stands for all files below it.
        libraries: iterable of str. Names of installed distributions.

    Returns:
        A short hex digest.
    """
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in libraries).encode())
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
