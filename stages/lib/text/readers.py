"""Read the rows of an instruction file in any of the known formats. An unreadable row is kept as it is."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from stages.lib.core.errors import UserError

csv.field_size_limit(2**31 - 1)


class Record(NamedTuple):
    line: int
    """Line number in a JSONL file, row number in other files, from 1."""
    values: dict[str, Any] | None
    """Text by column; a list, an object or bytes are no text and stay as they are. None if the row is unreadable."""
    raw: str
    """The row as it was, if it is unreadable; otherwise empty."""


def read_records(path: Path, encoding: str) -> Iterator[Record]:
    """Yield the rows of a .jsonl, .json (a list, or an object keyed by row number), .csv or .parquet file.

    Raises UserError if the file as a whole is unreadable (encoding, JSON or CSV syntax) or has no rows.
    """
    codec = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding  # with or without BOM
    readers = {".jsonl": json_lines, ".json": json_file, ".csv": csv_file, ".parquet": parquet_file}
    empty = True
    try:
        for record in readers[path.suffix](path, codec):
            yield record
            empty = False
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not {encoding}; set the source's encoding in merge.sources (cp949?)"
        ) from error
    except (LookupError, ValueError, RecursionError, csv.Error, OSError) as error:
        raise UserError(f"{path}: not readable as {path.suffix[1:]}: {error}") from error
    if empty:
        raise UserError(f"{path}: no rows")


def json_lines(path: Path, encoding: str) -> Iterator[Record]:
    with path.open("rb") as file:
        for line, content in enumerate(file, 1):
            if content.strip():
                yield json_line(line, content, encoding)


def json_line(line: int, content: bytes, encoding: str) -> Record:
    try:
        return to_record(line, json.loads(content.decode(encoding)))
    except (ValueError, RecursionError):
        return Record(line, None, content.decode(encoding, errors="replace").strip())


def json_file(path: Path, encoding: str) -> Iterator[Record]:
    content = json.loads(path.read_bytes().decode(encoding))
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects, or an object of objects keyed by row number")
    yield from (to_record(number, row) for number, row in enumerate(rows, 1))


def csv_file(path: Path, encoding: str) -> Iterator[Record]:
    content = path.read_bytes()
    content.decode(encoding)  # all at once, so that an error gives the position of the byte in the file
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding, newline=""), strict=True)
    header = next(reader, [])
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise ValueError(f"the header has the column {', '.join(twice)} more than once")
    for number, fields in enumerate(filter(None, reader), 1):
        if len(fields) == len(header):
            yield Record(number, dict(zip(header, fields, strict=True)), "")
        else:
            yield Record(number, None, ",".join(fields))


def parquet_file(path: Path, _encoding: str) -> Iterator[Record]:
    rows = (row for batch in pq.ParquetFile(path).iter_batches() for row in batch.to_pylist())
    yield from (to_record(number, row) for number, row in enumerate(rows, 1))


def to_record(line: int, row: Any) -> Record:
    """Return a row's scalars as text. A row is unreadable if it is not an object or has a lone surrogate."""
    if not isinstance(row, dict):
        return Record(line, None, json.dumps(row, ensure_ascii=False))
    values = {str(column): to_text(value) for column, value in row.items()}
    try:
        "".join(map(str, values.values())).encode("utf-8")
    except UnicodeEncodeError:
        return Record(line, None, json.dumps(row))
    return Record(line, values, "")


def to_text(value: Any) -> Any:
    """Return a scalar as text, an empty one for null and NaN; a list, an object and bytes as they are."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | list | dict | bytes):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)  # dates and decimals, in Parquet
