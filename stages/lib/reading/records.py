"""Read the rows of a file: JSON Lines, JSON, CSV, TSV, Parquet, .xlsx or KakaoTalk, by its content, not its ending.

A row that cannot be read is kept as raw text.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, TextIO

import pyarrow.parquet as pq

from stages.lib.reading.containers import plain, seekable
from stages.lib.reading.kakaotalk import CSV_HEADER, from_csv, is_kakaotalk, read_messages

csv.field_size_limit(2**31 - 1)
HEAD = 2**16
"""Characters at the beginning by which the format is recognised."""
CHUNK = 2**20
JSON_LINES = "JSON Lines"
NAMES = {",": "CSV", "\t": "TSV"}
HANGUL = re.compile("[가-힣]")


class Record(NamedTuple):
    line: int
    """Line number in JSON Lines and KakaoTalk text, row number in other files, from 1."""
    value: Any
    """The row as it is, usually an object. None if it is unreadable."""
    raw: str
    """The row as it was, if it is unreadable; otherwise empty."""


class Contents(NamedTuple):
    format: str
    encoding: str | None
    """None if the format is not text."""
    rows: Iterator[Record]


def read_contents(stream: BinaryIO, encoding: str) -> Contents:
    """Return the format of an open file and its rows.

    The rows of a JSON file are the items of its list; any other JSON is one row. Raises one of `containers.BROKEN`.
    """
    head = stream.read(HEAD)
    stream.seek(0)
    if head.startswith(b"PAR1"):
        return Contents("Parquet", None, numbered(parquet_rows(seekable(stream))))
    if head.startswith(b"PK\x03\x04"):  # any other zip is an archive, which `find_files` has opened
        return Contents("xlsx", None, numbered(workbook_rows(seekable(stream))))
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise ValueError("an old .xls, or a workbook with a password; save it as .xlsx without a password")
    codec = find_encoding(stream, encoding)
    text = io.TextIOWrapper(stream, codec, errors="surrogateescape", newline="")
    return text_contents(text, codec)


def text_contents(text: TextIO, codec: str) -> Contents:
    head = text.read(HEAD)
    text.seek(0)
    start = head.lstrip()[:1]
    if not start:
        return Contents("empty", codec, iter(()))
    if start in ("{", "[") and not is_kakaotalk(head):
        return json_contents(text, codec)
    require_encoding(text, codec)
    if is_kakaotalk(head):
        return Contents("KakaoTalk", codec, (Record(line, row, "") for line, row in read_messages(text)))
    first = head.lstrip().splitlines()[0]
    if "\0" in head or not ("\t" in first or "," in first):
        raise ValueError(f"neither JSON, a table, Parquet, .xlsx nor KakaoTalk text; it starts with {head[:40]!r}")
    separator = "\t" if "\t" in first else ","
    return Contents(NAMES[separator], codec, table_rows(text, separator))


def find_encoding(stream: BinaryIO, encoding: str) -> str:
    """Return the codec to read a text with: the stated one, or for `auto` utf-8 (with or without a BOM), then cp949.

    If there is a Hangul syllable in utf-8 before the first byte that is not utf-8, the text is utf-8 with a broken
    character, even if cp949 could read it (as other characters). Raises ValueError if `auto` finds no encoding.
    """
    if encoding != "auto":
        is_utf8 = codecs.lookup(encoding).name == "utf-8"
        return "utf-8-sig" if is_utf8 else encoding
    place, before = first_error(stream, "utf-8")
    if place is None or HANGUL.search(before):
        return "utf-8-sig"
    other, _ = first_error(stream, "cp949")
    if other is None:
        return "cp949"
    raise ValueError(f"byte {place} is not utf-8 and byte {other} is not cp949; state its `encoding` in merge.sources")


def require_encoding(text: TextIO, codec: str) -> None:
    """Go back to the beginning of a text. Raises ValueError if it has another encoding.

    JSON Lines are not checked, because a wrong byte there makes only its own line unreadable.
    """
    place, _ = first_error(text.buffer, codec)
    text.seek(0)
    if place is not None:
        raise ValueError(
            f"byte {place} is not {codec.removesuffix('-sig')}; correct the file, or its `encoding` in merge.sources"
        )


def first_error(stream: BinaryIO, codec: str) -> tuple[int | None, str]:
    """Return the place of the first byte that is not in this encoding, or None, and up to a chunk of text before it."""
    codec = codec.removesuffix("-sig")  # because its decoder does not count the BOM
    decoder, start, before = codecs.getincrementaldecoder(codec)(), 0, ""
    stream.seek(0)
    try:
        while chunk := stream.read(CHUNK):
            pending = len(decoder.getstate()[0])
            before = decoder.decode(chunk) or before
            start += len(chunk)
        pending = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode(codec, errors="ignore")
        return max(0, start - pending) + error.start, good or before
    finally:
        stream.seek(0)
    return None, before


def json_contents(text: TextIO, codec: str) -> Contents:
    """Return the rows of JSON Lines, which may have a comma after each object, or of one JSON text."""
    first = next(line for line in text if line.strip())
    if any(line.strip() for line in text) and is_row(first):
        text.seek(0)
        return Contents(JSON_LINES, codec, json_lines(text))
    require_encoding(text, codec)
    whole = text.read()
    try:
        content = json.loads(whole)
    except (ValueError, RecursionError):
        if not any(map(is_row, islice(whole.split("\n"), 1000))):
            raise
        return Contents(JSON_LINES, codec, json_lines(whole.split("\n")))
    return Contents("JSON", codec, numbered(content if isinstance(content, list) else [content]))


def is_row(line: str) -> bool:
    return line.lstrip()[:1] in ("{", "[") and parse_line(1, line).value is not None


def json_lines(lines: Iterable[str]) -> Iterator[Record]:
    return (parse_line(number, line) for number, line in enumerate(lines, 1) if line.strip())


def parse_line(number: int, line: str) -> Record:
    """Return a line of JSON, which may end in a comma."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if value is not None:
        return Record(number, value, "")
    line = line.strip()
    return parse_line(number, line[:-1]) if line.endswith(",") else Record(number, None, printable(line))


def printable(text: str) -> str:
    """Return a text with U+FFFD for every byte that was not in its encoding."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def table_rows(text: TextIO, separator: str) -> Iterator[Record]:
    reader = csv.reader(text, delimiter=separator, strict=True)
    try:
        header = [plain(name) for name in next(reader)]
        twice = sorted({column for column in header if column and header.count(column) > 1})
        if twice:
            raise ValueError(f"the header has the column {', '.join(twice)} more than once")
        for number, fields in enumerate(filter(None, reader), 1):
            if len(fields) == len(header):
                row = dict(zip(header, fields, strict=True))
                yield Record(number, from_csv(row) if header == CSV_HEADER else row, "")
            else:
                yield Record(number, None, separator.join(fields))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is not {NAMES[separator]}: {error}") from error


def parquet_rows(stream: BinaryIO) -> Iterator[Any]:
    return (row for batch in pq.ParquetFile(stream).iter_batches() for row in batch.to_pylist())


def workbook_rows(stream: BinaryIO) -> list[Any]:
    """Return a workbook's rows; if several sheets have rows, return one row: an object with the rows of each sheet."""
    from openpyxl import load_workbook

    try:
        book = load_workbook(stream, read_only=True, data_only=True)
        sheets = {plain(sheet.title): rows for sheet in book.worksheets if (rows := sheet_rows(sheet))}
    except Exception as error:  # damaged XML makes openpyxl raise many kinds
        raise ValueError(f"not readable as .xlsx: {error!r}") from error
    return next(iter(sheets.values())) if len(sheets) == 1 else [sheets] if sheets else []


def sheet_rows(sheet: Any) -> list[dict[str, Any]]:
    """Return the rows below a sheet's header, without empty rows."""
    sheet.reset_dimensions()  # because some programs write too small a size, and openpyxl would read no further
    rows = (row for row in sheet.iter_rows(values_only=True) if any(cell is not None for cell in row))
    header = [plain(str(name)) if name is not None else "" for name in next(rows, ())]
    return [dict(zip(header, row, strict=False)) for row in rows]


def numbered(rows: Iterable[Any]) -> Iterator[Record]:
    """Return the rows with their numbers. A row that is null is unreadable."""
    return (Record(number, row, "null" if row is None else "") for number, row in enumerate(rows, 1))
