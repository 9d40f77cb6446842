"""Merge the sources into one table of clean rows, and keep every dropped row with its reason.

    data/sources/* -> data/raw.parquet, data/held_out.jsonl, data/dropped.parquet

For each source, rows read = raw + held out + dropped. Only this stage orders or drops rows. They are in the order of
`merge.sources`, then of lines.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.lib.core.artifacts import write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Seed, Share
from stages.lib.core.runner import run
from stages.lib.text.hashing import text_hash, uniform_hash
from stages.lib.text.korean import (
    answers_in_korean,
    has_broken_characters,
    has_foreign_script,
    is_korean,
    same_text,
    strip_blank,
)
from stages.lib.text.readers import Record, read_records

log = logging.getLogger("stages")
COLUMNS = ["id", "source", "instruction", "output"]
RAW = pa.schema([(name, pa.string()) for name in COLUMNS])
DROPPED = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())]
)
NOT_TEXT: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}
CHUNK = 100_000
"""Most rows that are Python objects at once."""


class Row(NamedTuple):
    source: str
    line: int
    instruction: str
    request: str
    """The first field of the instruction that is not empty: what is asked, without the text it is asked about."""
    output: str
    text_hash: str
    """Of source, instruction and output."""
    readable: bool
    original: str
    """The row as it was, if it is unreadable; otherwise empty."""


class MergeSource(Section):
    name: str
    """An entry of fetch.sources."""
    instruction: list[str]
    """Columns that make up the instruction, joined by a space."""
    output: str
    """Column of the output."""
    source: str | None
    """Column whose text before the first `_` is the row's source; null: the source is `name`."""
    encoding: str
    """Encoding of a text file: utf-8 (a BOM is dropped), cp949, ..."""


class Drop(Section):
    empty: bool
    """Rows without an instruction or without an output."""
    duplicate: Literal["exact", "normalised"] | None
    """Rows whose instruction and output repeat those of an earlier row, in any source: exactly, or apart from spaces,
    punctuation, case and width; null drops none."""
    max_characters: Positive | None
    """Rows with more characters in instruction and output together; null drops none."""
    min_korean: Share | None
    """Rows with a smaller share of Korean words in the first field of the instruction; null drops none."""
    min_korean_output: Share | None
    """Rows with a smaller share in the output, unless they ask for another language or for code; null drops none."""
    foreign_script: bool
    """Rows with a foreign script inside a Korean output: 채소를 とても 많이 드세요."""
    broken_characters: bool
    """Rows with U+FFFD or private-use characters."""
    max_unreadable: Share
    """Largest share of unreadable rows in a file; more stop the stage."""


class HeldOut(Section):
    sources: list[str]
    """Sources whose instructions may be held out."""
    share: Share
    """Share of their instructions to hold out, drawn by hash."""
    max_rows: Count
    """Most rows to hold out."""
    seed: Seed
    """Seed of the draw."""


class Merge(Section):
    sources: list[MergeSource]
    """A list, because the order decides which of two duplicates stays and DVC ignores the order of a mapping."""
    drop: Drop
    """Which rows to drop."""
    held_out: HeldOut
    """Which rows to hold out; no arm is trained on them."""


class Params(Section):
    merge: Merge


def merge(params: Params, sources: Path, raw: Path, held_out: Path, dropped: Path) -> None:
    settings = params.merge
    check_sources(sources, [source.name for source in settings.sources])
    rows = pd.concat([read_source(sources, source, settings.drop) for source in settings.sources], ignore_index=True)
    check_names(rows)
    rows["id"] = row_ids(rows)
    rows["reason"] = drop_reasons(rows, settings.drop)

    clean = rows.loc[rows["reason"].isna(), ["source", "instruction"]]
    held = draw_held_out(clean, settings.held_out)
    kept, drawn = rows.loc[clean.index.drop(held), COLUMNS], rows.loc[held, COLUMNS]
    bad = rows[rows["reason"].notna()]
    if kept.empty:
        raise UserError(
            f"params.yaml: merge: no row is left of {len(rows)}: {len(drawn)} held out, dropped "
            f"{dict(Counter(bad['reason']))}; look at merge.drop and merge.held_out"
        )
    write_table(raw, kept, RAW)
    write_jsonl(held_out, drawn.to_dict("records"))
    write_table(dropped, bad.assign(id=bad["id"].where(bad["readable"], None), text=dropped_text(bad)), DROPPED)
    log_counts(rows[["source", "reason"]], kept["source"], drawn["source"])


def check_names(rows: pd.DataFrame) -> None:
    """Raise UserError if a source has the name that means all sources in the summary."""
    if (rows["source"] == "all").any():
        raise UserError("merge.sources: a source is called `all`, which means every source in the summary; rename it")


def check_sources(sources: Path, names: list[str]) -> None:
    """Raise UserError unless the fetched sources are the named ones, each named once."""
    fetched = {path.stem for path in sources.iterdir()}
    if fetched != set(names) or len(names) > len(set(names)):
        raise UserError(
            f"params.yaml: merge.sources and fetch.sources must name the same sources, each once: "
            f"only merge has {sorted(set(names) - fetched)}, only fetch has {sorted(fetched - set(names))}"
        )


def read_source(folder: Path, source: MergeSource, drop: Drop) -> pd.DataFrame:
    """Return the rows of one source, with the fields of `Row` as columns."""
    path = next(path for path in folder.iterdir() if path.stem == source.name)
    columns: set[str] = set()
    rows = rows_table(to_row(path, record, source, columns) for record in read_records(path, source.encoding))
    bad = rows[~rows["readable"]]
    if len(bad) > drop.max_unreadable * len(rows):
        raise UserError(
            f"{path}: {len(bad)} of {len(rows)} rows are unreadable, more than merge.drop.max_unreadable allows "
            f"({drop.max_unreadable}); the first is row {bad['line'].iloc[0]}: {bad['original'].iloc[0][:80]!r}. "
            f"Is the encoding of {source.name} in merge.sources ({source.encoding}) right?"
        )
    check_columns(path, source, columns)
    return rows


def rows_table(rows: Iterator[Row]) -> pd.DataFrame:
    """Return the rows as a table, built in chunks because rows as Python objects need far more memory."""
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    return pd.concat([pd.DataFrame(chunk, columns=Row._fields) for chunk in chunks], ignore_index=True)


def check_columns(path: Path, source: MergeSource, columns: set[str]) -> None:
    """Raise UserError unless the file has the columns that merge.sources names."""
    missing = [column for column in used_columns(source) if column not in columns]
    if missing:
        listed = ", ".join(sorted(columns))
        raise UserError(f"{path}: no column {', '.join(missing)}; it has {listed}; see {source.name} in merge.sources")


def to_row(path: Path, record: Record, source: MergeSource, columns: set[str]) -> Row:
    """Return a record of the file as a row, and add its columns to `columns`."""
    name, instruction, request, output = source.name, "", "", ""
    if record.values is not None:
        columns.update(record.values)
        require_text(path, record, source)
        parts = [clean_text(record.values.get(column, "")) for column in source.instruction]
        instruction, request = " ".join(part for part in parts if part), next(filter(None, parts), "")
        output = clean_text(record.values.get(source.output, ""))
        if source.source:
            name = clean_text(record.values.get(source.source, "")).split("_")[0] or name
    own_hash = text_hash(name, instruction, output)
    return Row(name, record.line, instruction, request, output, own_hash, record.values is not None, record.raw)


def require_text(path: Path, record: Record, source: MergeSource) -> None:
    """Raise UserError if a column that merge.sources names has a list, an object or bytes in this row."""
    values = record.values or {}
    for column in used_columns(source):
        value = values.get(column, "")
        if not isinstance(value, str):
            raise UserError(
                f"{path}, row {record.line}: expected text in the column {column}, got {NOT_TEXT[type(value)]}: "
                f"{str(value)[:80]}; {source.name} in merge.sources must name columns of text. Write question and "
                "answer into columns of their own; docs/data.md shows how"
            )


def used_columns(source: MergeSource) -> list[str]:
    return [*source.instruction, source.output, *([source.source] if source.source else [])]


def clean_text(text: str) -> str:
    return strip_blank(unicodedata.normalize("NFC", text))


def row_ids(rows: pd.DataFrame) -> list[str]:
    """Return the id of each row: a hash of source, instruction, output and, for a repeated row, its number."""
    ids = list(rows["text_hash"])
    number = rows.groupby("text_hash").cumcount()
    repeated = rows.loc[number > 0, ["source", "instruction", "output"]]
    for row, *key in repeated.itertuples(name=None):
        ids[row] = text_hash(*key, str(number[row]))
    return ids


def drop_reasons(rows: pd.DataFrame, drop: Drop) -> pd.Series:
    """Return why each row is dropped, or null if it stays. The first reason that applies counts."""
    reason = pd.Series(None, index=rows.index, dtype=object)

    def mark(name: str, applies: pd.Series) -> None:
        reason.loc[reason.isna() & applies] = name

    mark("unreadable", ~rows["readable"])
    if drop.empty:
        mark("empty", (rows["instruction"] == "") | (rows["output"] == ""))
    if drop.max_characters is not None:
        mark("too_long", rows["instruction"].str.len() + rows["output"].str.len() > drop.max_characters)
    mark_not_korean(rows, drop, mark)
    if drop.duplicate is not None:
        left = rows.loc[reason.isna(), ["instruction", "output"]]
        if drop.duplicate == "normalised":
            left = left.apply(lambda column: column.map(same_text))
        mark("duplicate", left.duplicated().reindex(rows.index, fill_value=False))
    return reason


def mark_not_korean(rows: pd.DataFrame, drop: Drop, mark: Callable[[str, pd.Series], None]) -> None:
    """Mark the rows that are broken or not Korean."""
    pairs = list(zip(rows["instruction"], rows["output"], strict=True))

    def pick(applies: Iterable[bool]) -> pd.Series:
        return pd.Series(list(applies), index=rows.index, dtype=bool)

    if drop.broken_characters:
        mark("broken_characters", pick(has_broken_characters(f"{i}{o}") for i, o in pairs))
    if drop.min_korean is not None:
        mark("not_korean", pick(not is_korean(text, drop.min_korean) for text in rows["request"]))
    if drop.min_korean_output is not None:
        mark("output_not_korean", pick(not answers_in_korean(i, o, drop.min_korean_output) for i, o in pairs))
    if drop.foreign_script:
        mark("foreign_script", pick(has_foreign_script(i, o) for i, o in pairs))


def dropped_text(bad: pd.DataFrame) -> list[str]:
    """Return instruction and output of each dropped row, or the row as it was if it is unreadable."""
    rows = zip(bad["readable"], bad["original"], bad["instruction"], bad["output"], strict=True)
    return [
        f"{instruction}\n\n{output}".strip() if readable else original
        for readable, original, instruction, output in rows
    ]


def draw_held_out(clean: pd.DataFrame, settings: HeldOut) -> pd.Index:
    """Return the labels of the held-out rows. A drawn instruction takes all its rows with it, whatever their source."""
    if clean.empty:
        return clean.index
    unknown = sorted(set(settings.sources) - set(clean["source"]))
    if unknown:
        raise UserError(
            f"params.yaml: merge.held_out.sources: no row has the source {', '.join(unknown)}; "
            f"the sources are {', '.join(sorted(set(clean['source'])))}"
        )
    text, texts = pd.factorize(clean["instruction"])
    sizes = np.bincount(text)
    eligible = pd.unique(text[clean["source"].isin(settings.sources)])
    hashes = pd.Series(uniform_hash(list(texts[eligible]), "held_out", settings.seed), index=eligible)
    drawn, room = [], settings.max_rows
    for instruction in hashes[hashes < settings.share].sort_values(kind="stable").index:
        if sizes[instruction] <= room:  # an instruction with more rows is skipped, because a later one may fit
            drawn.append(instruction)
            room -= sizes[instruction]
    return clean.index[np.isin(text, drawn)]


def log_counts(rows: pd.DataFrame, kept: pd.Series, held: pd.Series) -> None:
    """Log the rows of each source and what became of them, which must add up."""
    for source, reason in rows.groupby("source", sort=False)["reason"]:
        raw, out = int((kept == source).sum()), int((held == source).sum())
        why = dict(sorted(Counter(reason.dropna()).items()))
        if len(reason) != raw + out + sum(why.values()):
            raise AssertionError(f"{source}: {len(reason)} rows read, but {raw} + {out} + {why} written")
        counts = len(reason), raw, out, sum(why.values())
        log.info("%s: %d rows read = %d raw + %d held out + %d dropped %s", source, *counts, why)


if __name__ == "__main__":
    run(merge, Params)
