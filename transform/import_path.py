"""Objects by import path: how a spec names a model, head, loss or metric that this package does not bring."""

from __future__ import annotations

import importlib
from typing import Any

from transform.errors import SpecError

IMPORT_PATH_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def is_import_path(name: str) -> bool:
    """Whether a name is `package.module:Name`, not the name of something that this package brings."""
    return ":" in name


def import_object(path: str, where: str) -> Any:
    """Imports what a spec names.

    Args:
        path: str. `package.module:Name`.
        where: str. The place in the spec, for messages.

    Returns:
        The object.

    Raises:
        SpecError: when there is no such module, it fails on import, or it has no such name.
    """
    module_name, _, name = path.partition(":")
    cure = "Install the package that holds it, or add its folder to PYTHONPATH."
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise SpecError(
            f"{where}: a module that can be imported is expected. Received: `{path}`, whose import fails with "
            f"{type(error).__name__}: {error}. {cure}"
        ) from error
    if not hasattr(module, name):
        raise SpecError(
            f"{where}: a name in the module `{module_name}` is expected. Received: `{path}`, and {module.__file__} has "
            f"no `{name}`."
        )
    return getattr(module, name)
