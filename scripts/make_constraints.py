"""Writes the constraints that pip takes from the locks of both stacks, each with the Pythons that it is for.

Run as `python scripts/make_constraints.py requirements/stack-a.lock requirements/stack-b.lock`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

HEADER = """\
# Made by `make lock` of stack-a.lock and stack-b.lock: the versions that are tested, for both stacks.
#     pip install -c requirements/constraints.txt ".[tfx]"
"""
STACKS = ("python_version < '3.11'", "python_version >= '3.11'")


def pins(lock: str) -> Iterator[Requirement]:
    """The packages of a lock, each with its version and, in a universal lock, its marker; hashes are left out."""
    for line in lock.splitlines():
        if line and line[0] not in " #":  # hashes and remarks are indented
            yield Requirement(line.rstrip(" \\"))


def constraints(*locks: str) -> str:
    """The constraints file.

    Args:
        *locks: str. The text of stack A's lock and of stack B's.

    Returns:
        A line a package and stack, sorted by package.

    Raises:
        ValueError: when a line of a lock pins no version.
    """
    lines = []
    for stack, lock in zip(STACKS, locks, strict=True):
        for pin in pins(lock):
            if [of.operator for of in pin.specifier] != ["=="] or "*" in str(pin.specifier):
                raise ValueError(f"A lock should pin one version a line. Received: {pin}.")
            marker = Marker(f"{stack} and ({pin.marker})" if pin.marker else stack)
            lines.append((pin.name, f"{pin.name}{pin.specifier}; {marker}"))
    return HEADER + "".join(f"{line}\n" for _, line in sorted(lines, key=lambda pair: pair[0]))


def main() -> int:
    """Writes the file whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs=2, type=Path, metavar="LOCK", help="stack A's, then stack B's")
    parser.add_argument("--output", type=Path, help="the file to write (default: standard output)")
    arguments = parser.parse_args()
    try:
        text = constraints(*(path.read_text(encoding="utf-8") for path in arguments.locks))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not arguments.output:
        sys.stdout.write(text)
        return 0
    unfinished = arguments.output.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
