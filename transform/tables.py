"""Reading the raw files: which exist, which columns they hold, and their rows.

Files are opened through TensorFlow's file system layer, so that paths on object stores work wherever TensorFlow
knows them.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from transform.errors import DataError

BUFFER_BYTES = 1 << 18


class Row(NamedTuple):
    """One row of a file: where it stands, a digest of the whole row, and the values of the columns asked for."""

    origin: str
    digest: bytes
    values: tuple[str, ...]


def match_files(data_dir: str, patterns: Sequence[str], place: str) -> list[str]:
    """The files that the patterns of a section match.

    Args:
        data_dir: str. The folder that patterns are relative to.
        patterns: sequence of str. Glob patterns.
        place: str. The section in the spec, for the message.

    Returns:
        Paths, sorted within a pattern, each once.

    Raises:
        DataError: when a pattern matches nothing, or a file is of a kind that can't be read.
    """
    paths: list[str] = []
    for pattern in patterns:
        found = sorted(tf.io.gfile.glob(os.path.join(data_dir, pattern)))
        if not found:
            raise DataError(
                f"{place}: files that match `{pattern}` in `{data_dir}` are expected. Received: none. "
                "Correct the pattern or the data folder."
            )
        paths += found
    for path in paths:
        if not path.endswith((".csv", ".csv.gz")):
            raise DataError(f"{place}: .csv or .csv.gz files are expected. Received: `{path}`. Convert the file.")
    return list(dict.fromkeys(paths))


class _Stream(io.RawIOBase):
    """A file of TensorFlow's file system layer as one of Python's streams."""

    def __init__(self, path: str):
        self._file = tf.io.gfile.GFile(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: str) -> io.TextIOWrapper:
    raw = io.BufferedReader(_Stream(path), BUFFER_BYTES)
    return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw, "utf-8-sig", newline="")


def _lines(path: str) -> Iterator[list[str]]:
    """The rows of a csv file, with every way in which reading can fail turned into one clear message."""
    try:
        with _open(path) as file:
            yield from csv.reader(file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, tf.errors.OpError) as error:
        raise DataError(
            f"{path}: a readable csv file in UTF-8 is expected. Received: {error}. Check that it is whole."
        ) from error


def read_header(path: str) -> list[str]:
    """The column names of a csv file.

    Raises:
        DataError: when the file is empty or can't be read.
    """
    header = next(_lines(path), None)
    if not header:
        raise DataError(f"{path}: a header line is expected. Received: an empty file. Remove it, or write it again.")
    return header


def check_columns(path: str, columns: Sequence[str], place: str) -> None:
    """Raises a DataError when a file lacks one of the columns."""
    header = read_header(path)
    for column in columns:
        if column not in header:
            near = difflib.get_close_matches(column, header, 1)
            cure = f"Did you mean `{near[0]}`?" if near else f"Its columns: {', '.join(header)}."
            raise DataError(f"{path}: column `{column}` is expected ({place}). Received: no such column. {cure}")


def read_rows(path: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a csv file.

    Args:
        path: str. A .csv or .csv.gz file with a header line.
        columns: sequence of str. The columns whose values are wanted, in this order.

    Yields:
        Rows; `origin` is the file's name and the line.

    Raises:
        DataError: when the file can't be read or a row has another number of values than the header.
    """
    lines = _lines(path)
    header = next(lines, None) or []
    places = [header.index(column) for column in columns]
    name = os.path.basename(path)
    for number, line in enumerate(lines, start=2):
        if not line:
            continue  # an empty line, often the last
        if len(line) != len(header):
            raise DataError(
                f"{name}:{number}: {len(header)} values as in the header are expected. Received: {len(line)}. "
                "Quote values that hold a comma, and check that the file is whole."
            )
        digest = hashlib.blake2b("\x1f".join(line).encode(), digest_size=12).digest()
        yield Row(f"{name}:{number}", digest, tuple(line[place] for place in places))
