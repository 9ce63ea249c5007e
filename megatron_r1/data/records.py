"""Files of records, line by line: JSONL, JSONL.gz, CSV or Parquet, without ever holding a file.

What a reader does with a line that is no record, to stop or to set it aside, is its own business: a
bad line arrives like the others, with what is wrong with it. `parse_records` is what training reads
by, whatever a record has to hold.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from megatron_r1.data.json_lines import decode
from megatron_r1.errors import DataError

T = TypeVar("T")
FORMATS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_PARQUET_ROWS = 1_024
_NOT_TEXT = ("choices", "tests", "lineage", "margin", "safe")
"""Keys of docs/data.md with other values than texts: in a CSV such a cell is JSON."""


@dataclass(frozen=True)
class Line:
    """One line of a file, or one row of a table; the first is 1, and a CSV's heading is line 1."""

    path: Path
    number: int
    record: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """What is wrong; then there is no record."""
    text: str = ""
    """A bad line as it stands."""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"

    def fail(self, error: str) -> DataError:
        """The error that names this line."""
        text = self.text
        if not text and self.record:
            text = json.dumps(self.record, ensure_ascii=False, default=str)
        start = f". The line starts {text[:60]!r}" if text else ""
        return DataError(f"{self.where}: {error}{start}")


def read_lines(path: str | Path, what: str = "record") -> Iterator[Line]:
    """Every line but blank ones, in order.

    Args:
        what: a line's name in messages.
    Raises:
        DataError: the file is missing, has another format, or is cut short.
    """
    path = Path(path)
    if not path.name.endswith(FORMATS):
        raise DataError(f"{path}: not a data file. It must end in {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    number = 0
    try:
        with _open(path) as file:
            for line in (
                _csv_rows(path, file) if path.suffix == ".csv" else _json_lines(path, file, what)
            ):
                number = line.number
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged after line {number}: {error}. Copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def read_records(path: str | Path) -> Iterator[Line]:
    """The same, where a bad line ends it.

    Raises:
        DataError: the first bad line, or a file without any.
    """
    found = False
    for line in read_lines(path):
        if line.error:
            raise line.fail(line.error)
        found = True
        yield line
    if not found:
        raise DataError(f"{path} is empty")


def parse_records(
    path: str | Path,
    parse: Callable[[dict[str, Any], int], T],
    *,
    what: str,
    way_out: str,
    max_lines: int | None = None,
    bad_lines: list[DataError] | None = None,
) -> list[T]:
    """`parse` each record of a file, given its line's number. A file of any other ending than
    `FORMATS` is read as JSONL.

    Args:
        parse: raises ValueError with what is wrong with a record.
        what: one record's name in messages, e.g. ``prompt``.
        way_out: said of a file that cannot be opened.
        max_lines: stops there, with or without a record; None reads the whole file.
        bad_lines: gets what is wrong with each line that is left out; None: the first ends it.
    Raises:
        DataError: the file is missing or holds no usable record, or a line is unusable:
            ``file:line``, what is wrong, and how the line starts.
    """
    records: list[T] = []
    found_bad: list[DataError] = []
    is_whole = True
    for line in _lines_of_any(Path(path), what, way_out):
        if max_lines is not None and line.number > max_lines:
            is_whole = False
            break
        try:
            if line.error:
                raise ValueError(line.error)
            records.append(parse(line.record, line.number))
        except ValueError as error:
            found_bad.append(line.fail(str(error)))
            if bad_lines is None:
                raise found_bad[0] from error
    if is_whole and not records and found_bad:
        raise DataError(f"{what} file {path}: all of its lines are bad; the first: {found_bad[0]}")
    if is_whole and not records:
        raise DataError(f"{what} file {path} holds no {what}. Write one JSON object a line")
    if bad_lines is not None:
        bad_lines += found_bad
    return records


def line_id(path: str | Path, number: int) -> str:
    """The name of a line that has none of its own: the file's without its ending, and the number.
    ``data/math.v2.jsonl.gz`` has ``math.v2/17``."""
    return f"{file_name(path)}/{number}"


def file_name(path: str | Path) -> str:
    """Without its folder, and without the ending that says its format."""
    name = Path(path).name
    for ending in FORMATS:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return Path(path).stem


def _lines_of_any(path: Path, what: str, way_out: str) -> Iterator[Line]:
    """`read_lines`, of a file of another ending too."""
    if path.is_dir() or not path.exists():
        strerror = "Is a directory" if path.is_dir() else "No such file or directory"
        raise DataError(f"{what} file {path}: {strerror}. {way_out}")
    if path.name.endswith(FORMATS):
        yield from read_lines(path, what)
        return
    try:
        with open(path, "rb") as file:
            yield from _json_lines(path, file, what)
    except OSError as error:
        raise DataError(f"{what} file {path}: {error.strerror}. {way_out}") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _json_lines(path: Path, file: IO[bytes], what: str) -> Iterator[Line]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield Line(path, number, decode(line.rstrip(b"\n"), what))
        except ValueError as error:
            text = line.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
            yield Line(path, number, error=str(error), text=text)


def _csv_rows(path: Path, file: IO[bytes]) -> Iterator[Line]:
    """Rows without their empty cells: CSV has every column in every row."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(line.decode("utf-8-sig") for line in file)
    try:
        heading = next(reader, [])
        twice = [name for name, count in Counter(heading).items() if name and count > 1]
        if twice:
            raise DataError(f"{path}:1: two columns are called {twice[0]!r}. Rename one of them")
        while True:
            number = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if not row:
                continue
            if len(row) != len(heading):
                error = f"{len(row)} columns under {len(heading)} headings"
                yield Line(path, number, error=error, text=",".join(row))
            else:
                cells = zip(heading, row, strict=True)
                yield Line(path, number, {key: _cell(key, text) for key, text in cells if text})
    except (UnicodeDecodeError, csv.Error) as error:
        # Where a row ends is not known any more, so what follows cannot be read either.
        raise DataError(f"{path}:{reader.line_num + 1}: {error}. Save it as UTF-8 CSV") from error


def _cell(key: str, text: str) -> Any:
    """A cell's value; where it is not of its column's type, who reads it says so."""
    if key not in _NOT_TEXT:
        return text
    # Spreadsheets and pandas write TRUE and True.
    as_json = text.lower() if text.lower() in ("true", "false") else text
    try:
        return json.loads(as_json)
    except (ValueError, RecursionError):
        return text


def _parquet_rows(path: Path) -> Iterator[Line]:
    """Rows without the columns that are null in them: Parquet has every column in every row."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install pyarrow. Or save "
            "it as JSONL"
        ) from error
    numbers, place = itertools.count(1), ""
    try:
        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                place = f"row group {group + 1} of {file.num_row_groups}: "
                for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        record = {key: value for key, value in row.items() if value is not None}
                        yield Line(path, next(numbers), record)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: {place}not readable as Parquet: {error}") from error
