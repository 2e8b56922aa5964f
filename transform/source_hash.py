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
    """A module's sources, each with its path relative to the module's folder; of a package all below it, with C++.

    A package may be a folder without an `__init__.py`.
    """
    found = importlib.util.find_spec(module)
    if found is not None and found.submodule_search_locations is not None:
        folders = [Path(folder) for folder in found.submodule_search_locations]
        paths = [(path, path.relative_to(folder)) for folder in folders for path in folder.rglob("*")]
        return sorted((path, relative) for path, relative in paths if path.suffix in SUFFIXES)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"An importable module is expected. Received: `{module}`.")
    return [(Path(found.origin), Path(Path(found.origin).name))]
