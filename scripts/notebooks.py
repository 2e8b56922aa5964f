"""Executes notebooks in their order, each in a kernel of its own: `python scripts/notebooks.py --help`.

What they read from the environment is theirs to say. A notebook is written when all of its cells ran; its outputs hold
no times, and its metadata stay as they were.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config


def main() -> int:
    parser = argparse.ArgumentParser(prog="python scripts/notebooks.py", description=__doc__.split(":")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="a folder for the executed copies (default: written in place)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Nothing of the user's Jupyter is read or written, and `python3` is the interpreter that runs this.
        os.environ.update({name: folder for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")})
        write_kernel_spec(os.path.join(folder, "kernels", "python3"))
        for path in arguments.notebooks:
            print(path, flush=True)
            try:
                executed = execute(path)
            except CellExecutionError as error:
                print(f"{path}: {error}", file=sys.stderr)
                return 1
            target = arguments.output / path.name if arguments.output else path
            unfinished = target.with_name(f".{target.name}")
            unfinished.write_text(nbformat.writes(executed) + "\n", encoding="utf-8")
            os.replace(unfinished, target)
    return 0


def execute(path: Path) -> nbformat.NotebookNode:
    """The executed notebook; its kernel starts in the notebook's folder, as Jupyter has it."""
    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
    )
    executed = client.execute()
    executed.metadata = metadata
    return executed


if __name__ == "__main__":
    sys.exit(main())
