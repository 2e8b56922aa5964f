"""A hash of the code that a component runs, so that TFX's cache sees an edit."""

from __future__ import annotations

from transform.source_hash import source_hash

LIBRARIES = ("apache-beam", "keras", "tensorflow", "tensorflow-transform", "tensorflow-model-analysis", "tfx")


def code_version(*modules: str) -> str:
    """Hashes packages and modules, and the versions of the libraries that they stand on.

    TFX knows a function by its name alone: without the hash, an edited model would be answered from the cache.

    Args:
        *modules: str. Importable names; a package stands for all files below it.

    Returns:
        A short hex digest.
    """
    return source_hash(modules, LIBRARIES)
