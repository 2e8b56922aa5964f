"""Reading the raw files: which exist, which columns they hold, and their rows.

Files are opened through TensorFlow's file system layer, so that paths on object stores work wherever TensorFlow
knows them. Whatever their format, rows are texts: a Parquet file gives those that the same table would have as csv.
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

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from transform.errors import DataError
from transform.list_text import join_list

BUFFER_BYTES = 1 << 18
PARQUET = ".parquet"
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException, tf.errors.OpError)
_KINDS = (".csv", ".csv.gz", PARQUET)


class Row(NamedTuple):
    """One row of a file: where it stands, a digest of the whole row (b"" unless asked for), and values."""

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
        if not path.endswith(_KINDS):
            raise DataError(f"{place}: {', '.join(_KINDS)} files are expected. Received: `{path}`. Convert the file.")
    return list(dict.fromkeys(paths))


class _Stream(io.RawIOBase):
    """A file of TensorFlow's file system layer as one of Python's streams."""

    def __init__(self, path: str):
        self._file = tf.io.gfile.GFile(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

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


def _csv_lines(path: str) -> Iterator[list[str]]:
    """The header and the rows of a csv file."""
    with _open(path) as file:
        yield from csv.reader(file)


def _parquet_lines(path: str, columns: Sequence[str] | None) -> Iterator[list[str]]:
    """The header and the rows of a Parquet file, as texts; of all columns, or of some in their order."""
    with io.BufferedReader(_Stream(path), BUFFER_BYTES) as file:
        table = pq.ParquetFile(file)
        yield table.schema_arrow.names if columns is None else list(columns)
        for batch in table.iter_batches(columns=columns):
            found = batch.columns if columns is None else map(batch.column, columns)
            yield from map(list, zip(*map(_texts, found), strict=True))


def _texts(column: pa.Array) -> Iterator[str]:
    """The values of a column as texts; times as epoch milliseconds."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    return map(_text, column.to_pylist())


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return join_list(map(_text, value))
    # Whole numbers in a column with gaps became floats on their way through pandas: 12.0 is 12.
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return value.decode() if isinstance(value, bytes) else str(value)


def _lines(path: str, columns: Sequence[str] | None = None) -> Iterator[list[str]]:
    """The header and the rows of a file, with every way in which reading can fail turned into one clear message.

    With `columns`, a Parquet file gives these alone; a csv file has to be read whole and gives all.
    """
    is_parquet = path.endswith(PARQUET)
    try:
        yield from _parquet_lines(path, columns) if is_parquet else _csv_lines(path)
    except _UNREADABLE as error:
        kind = "Parquet file" if is_parquet else "csv file in UTF-8"
        raise DataError(f"{path}: a readable {kind} is expected. Received: {error}. Check that it is whole.") from error


def read_header(path: str) -> list[str]:
    """The column names of a file.

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


def read_rows(path: str, columns: Sequence[str], with_digest: bool = False) -> Iterator[Row]:
    """The rows of a file.

    A digest is of all columns; without it, a Parquet file's other columns are not read.

    Args:
        path: str. A .parquet file, or a .csv or .csv.gz file with a header line.
        columns: sequence of str. The columns whose values are wanted, in this order.
        with_digest: bool. Whether rows need their digest. Defaults to `False`.

    Yields:
        Rows; `origin` is the file's name and the line (in a Parquet file, the row).

    Raises:
        DataError: when the file can't be read or a row has another number of values than the header.
    """
    lines = _lines(path, None if with_digest else columns)
    header = next(lines, None) or []
    places = [header.index(column) for column in columns]
    name = os.path.basename(path)
    for number, line in enumerate(lines, start=1 if path.endswith(PARQUET) else 2):
        if not line:
            continue  # an empty line, often the last
        if len(line) != len(header):
            raise DataError(
                f"{name}:{number}: {len(header)} values as in the header are expected. Received: {len(line)}. "
                "Quote values that hold a comma, and check that the file is whole."
            )
        digest = hashlib.blake2b("\x1f".join(line).encode(), digest_size=12).digest() if with_digest else b""
        yield Row(f"{name}:{number}", digest, tuple(line[place] for place in places))
