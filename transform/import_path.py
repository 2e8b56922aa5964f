"""Import paths: how a spec names an object of the user's own code."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable
from typing import Any

from transform.errors import SpecError

OWN_PACKAGES = ("onerank", "transform", "trainer", "serving", "tfx_pipeline")
IMPORT_PATH = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
"""The pattern of a path: `package.module:Name`."""


def is_import_path(text: str) -> bool:
    """Whether a text has the form of an import path, wherever it leads."""
    return re.fullmatch(IMPORT_PATH, text) is not None


def imported_packages(names: Iterable[str]) -> tuple[str, ...]:
    """The packages outside this project that names lead to: of an import path all of its top-level package.

    Args:
        names: iterable of str. Import paths; names without a colon are this project's own and left out.

    Returns:
        Importable names, each once, for `source_hash`.
    """
    return tuple(sorted({name.partition(":")[0].partition(".")[0] for name in names if is_import_path(name)}))


def import_object(path: str, where: str) -> Any:
    """Imports what a path names.

    Args:
        path: str. `package.module:Name`; after the colon there may be names within names, as `Class.attribute`.
        where: str. The place in the spec, as `evaluation.metrics[1]`. Error messages begin with it.

    Returns:
        The object.

    Raises:
        SpecError: when the text is no import path, the module can't be imported, or the name is not in it.
    """
    if not is_import_path(path):
        raise SpecError(
            f"{where}: an import path is expected, as `package.module:Name`. Received: `{path}`. Write the module, a "
            "colon and a name in it."
        )
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        cure = "Install its package, or add its folder to PYTHONPATH." if is_missing else "Correct the module."
        if is_missing and module_name.partition(".")[0] in OWN_PACKAGES:
            cure = f"`{module_name.partition('.')[0]}` is a package of OneRank's: give yours another name."
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise SpecError(
            f"{where}: a module that can be imported is expected. Received: `{module_name}`, {told}. {cure}"
        ) from error
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        raise SpecError(
            f"{where}: a name in the module `{module_name}` is expected. Received: `{name}`, which it doesn't have. "
            f"Define it in {getattr(module, '__file__', None) or module_name}, or correct the path."
        ) from None
