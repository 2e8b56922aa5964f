"""What a part of the package needs beyond the base, and what to install where it is missing."""

from __future__ import annotations

import importlib.util
import sys

from transform.errors import UserError

# The packages of each extra that its code imports; tests/test_packaging.py compares them with pyproject.toml. They are
# not read from the installed metadata because that takes 50 ms, in every `--help`.
PACKAGES = {
    "client": ("cachetools", "httpx", "rich", "tenacity"),
    "redis": ("redis",),
    "serving": (
        "grpcio",
        "grpcio-health-checking",
        "prometheus-client",
        "starlette",
        "tensorflow",
        "tensorflow-serving-api",
        "uvicorn",
    ),
    "tfx": ("absl-py", "jinja2", "markupsafe", "matplotlib", "ml-metadata", "tensorflow-model-analysis", "tfx"),
    "train": (
        "apache-beam",
        "keras",
        "pyarrow",
        "rich",
        "tensorboard",
        "tensorflow",
        "tensorflow-metadata",
        "tensorflow-serving-api",
        "tensorflow-transform",
    ),
}
INCLUDES = {"redis": ("client",), "serving": ("client",), "tfx": ("serving", "train")}
# What is imported as another name than the package's.
_MODULES = {
    "absl-py": "absl",
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "tensorflow-serving-api": "tensorflow_serving",
}


class MissingExtra(ImportError, UserError):
    """An extra of this package is not installed; the text says which, and how to install it."""


def require_extra(extra: str, needed_by: str, only: tuple[str, ...] = ()) -> None:
    """Sees that the packages of an extra are there before something heavy is imported. Imports none of them.

    Where the caller is run as a program, by `python -m`, a missing one ends the process with the message alone: nobody
    who starts a program wants to read a traceback for it.

    Args:
        extra: str. The extra's name.
        needed_by: str. The module that needs it.
        only: tuple of str, optional. The packages that have to be there. Defaults to all of the extra.

    Raises:
        MissingExtra: when one is not installed.
        SystemExit: instead, when `needed_by` is being run as a program.
    """
    if all(map(_is_there, only or packages(extra))):
        return
    missing = ", ".join(package for package in packages(extra) if not _is_there(package))
    message = (
        f"{needed_by}: the packages of the extra `{extra}` are expected. Missing: {missing}. "
        f'Install them: pip install "onerank[{extra}]"'
    )
    raise SystemExit(f"error: {message}") if _is_program(needed_by) else MissingExtra(message)


def packages(extra: str) -> list[str]:
    """The packages of an extra and of the extras that it includes, without those of the base, sorted."""
    return sorted({*PACKAGES[extra]}.union(*map(packages, INCLUDES.get(extra, ()))))


def _is_there(package: str) -> bool:
    spec = importlib.util.find_spec(_MODULES.get(package, package.replace("-", "_")))
    return spec is not None and spec.origin is not None  # a folder of that name is no package


def _is_program(module: str) -> bool:
    """While Python looks for the module that `-m` names, which imports the packages above it, argv[0] is "-m"."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return sys.argv[:1] == ["-m"] or getattr(main, "name", None) == module
