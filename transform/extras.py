"""What a part of the package needs beyond the base, and what to install where it is missing."""

from __future__ import annotations

import importlib.util
import sys

from transform.errors import UserError


class MissingExtra(ImportError, UserError):
    """An extra of this package is not installed; the text says which, and how to install it."""


def require_extra(extra: str, needed_by: str, *modules: str) -> None:
    """Sees that modules are there before something heavy is imported. Imports none of them.

    Where the caller is run as a program, by `python -m`, a missing one ends the process with the message alone: nobody
    who starts a program wants to read a traceback for it.

    Args:
        extra: str. The extra of this package that brings the modules.
        needed_by: str. The module that needs them.
        *modules: str. Top-level names.

    Raises:
        MissingExtra: when one is not installed.
        SystemExit: instead, when `needed_by` is being run as a program.
    """
    missing = [module for module in modules if not _is_there(module)]
    if not missing:
        return
    message = (
        f"{needed_by}: the packages of the extra `{extra}` are expected. Missing: {', '.join(missing)}. "
        f'Install them: pip install "onerank[{extra}]"'
    )
    raise SystemExit(f"error: {message}") if _is_program(needed_by) else MissingExtra(message)


def _is_there(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a folder of that name is no package


def _is_program(module: str) -> bool:
    """While Python looks for the module that `-m` names, which imports the packages above it, argv[0] is "-m"."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return sys.argv[:1] == ["-m"] or getattr(main, "name", None) == module
