"""Files that stages hand to each other: whole or absent, with equal bytes for equal content."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.lib.core.errors import UserError

ROW_GROUP = 2**17
"""Rows converted to Arrow at a time, because an Arrow text array holds at most 2 GiB."""
DIGITS = 10
"""Significant digits of numbers in JSON; those after them depend on the CPU."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`, for a file or a folder; rename it to `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    remove(scratch)
    try:
        yield scratch
        if scratch.is_dir():  # renaming replaces a file in one step, but not a folder
            remove(path)
        scratch.replace(path)
    finally:
        remove(scratch)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_table(path: Path, columns: Mapping[str, Any] | pd.DataFrame | pa.Table, schema: pa.Schema) -> None:
    """Write one Parquet file with page checksums and the columns of `schema`; NaN becomes null."""
    rows = len(columns[schema.names[0]])
    with (
        atomic(path) as scratch,
        pq.ParquetWriter(scratch, schema, compression="zstd", write_page_checksum=True) as file,
    ):
        for start in range(0, max(rows, 1), ROW_GROUP):
            part = {name: columns[name][start : start + ROW_GROUP] for name in schema.names}
            whole = pa.table(part, schema=schema).combine_chunks()  # so that chunk borders do not show in the pages
            file.write_table(whole)


def write_arrow(path: Path, table: pa.Table) -> None:
    write_table(path, table, table.schema)


def read_table(path: Path, *names: str) -> pd.DataFrame:
    """Return the named columns of a Parquet file, all if none is named."""
    return read_arrow(path, *names).to_pandas()


def read_arrow(path: Path, *names: str) -> pa.Table:
    """Return the named columns, all if none is named. Raises UserError if one is missing, or the file is damaged."""
    try:
        missing = set(names) - set(there := pq.read_schema(path).names)
        if missing:
            raise UserError(
                f"{path}: no column {', '.join(sorted(missing))}; it has {', '.join(there)}; is it the wrong file?"
            )
        return pq.read_table(path, columns=list(names) or None, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet: {error}; run `dvc repro` or `dvc pull`") from error


def require_same_rows(**ids: Iterable[str]) -> None:
    """Raise UserError unless all the named columns of ids are equal, row by row."""
    (first, want), *others = ((name, pd.Series(column)) for name, column in ids.items())
    for name, got in others:
        if got.equals(want):
            continue
        row = next((i for i, pair in enumerate(zip(want, got, strict=False)) if pair[0] != pair[1]), None)
        differs = f"{len(got)} rows, not {len(want)}" if row is None else f"{got[row]} in row {row}, not {want[row]}"
        raise UserError(f"{name} has {differs} as in {first}: they come from different merges; run `dvc repro`")


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys and rounded numbers. Raises UserError if a number is not finite."""
    content = rounded(content, path.name)
    with atomic(path) as scratch:
        text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
        scratch.write_text(text + "\n", encoding="utf-8")


def rounded(content: Any, where: str) -> Any:
    """Return the content with every float rounded to DIGITS. Raises UserError if one is not finite."""
    if isinstance(content, dict):
        return {key: rounded(value, f"{where}: {key}") for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value, where) for value in content]
    if not isinstance(content, float):
        return content
    if not math.isfinite(content):
        raise UserError(f"{where} is {content}; look at the log of the stage that computed it")
    return float(f"{content:.{DIGITS}g}")


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: missing; run `dvc repro`")
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic(path) as scratch, scratch.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file (lines end at \\n only, never at U+2028)."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file if line.strip()]
