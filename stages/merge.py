"""Merge the sources into one table of clean rows; every dropped row keeps its reason.

    data/sources/* -> data/raw.parquet, data/held_out.jsonl, data/dropped.parquet

Rows read = raw + held out + dropped, for every source. Only this stage orders or drops rows: sources in the order of
`merge.sources`, then lines.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.lib.core.artifacts import write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Share
from stages.lib.core.runner import run
from stages.lib.text.hashing import text_hash, uniform_hash
from stages.lib.text.readers import Record, read_records

log = logging.getLogger("stages")
COLUMNS = ["id", "source", "instruction", "output"]
RAW = pa.schema([(name, pa.string()) for name in COLUMNS])
DROPPED = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())]
)
HANGUL = re.compile("[\uac00-\ud7a3\u3131-\u318e\u1100-\u11ff]+")
PIECE = 100_000
"""Rows that are held as Python's objects at once."""


class Row(NamedTuple):
    source: str
    line: int
    instruction: str
    output: str
    text: str
    """Hash of source, instruction and output."""
    readable: bool
    unread: str
    """The row as it stands, where it is unreadable."""


class MergeSource(Section):
    name: str
    """Entry of fetch.sources."""
    instruction: list[str]
    """Columns of the instruction, joined by a space."""
    output: str
    source: str | None
    """Column whose text before the first `_` names the row's source; null: the entry's own name."""
    encoding: str
    """Encoding of a text file: utf-8 (a BOM is dropped), cp949, ..."""


class Drop(Section):
    empty: bool
    """Rows without an instruction or without an output."""
    duplicate: bool
    """Rows whose instruction and output stood before, in any source."""
    max_characters: Positive | None
    """Rows with more characters of instruction and output together."""
    min_hangul: Share | None
    """Rows with a smaller share of Hangul among the letters of the instruction."""
    max_unreadable: Share
    """Share of a file's rows that may be unreadable; more stops the stage."""


class HeldOut(Section):
    sources: list[str]
    share: Share
    """Share of the instructions of these sources, drawn by hash."""
    max_rows: Count
    seed: int


class Merge(Section):
    sources: list[MergeSource]
    """A list, for their order decides which of two duplicates stays, and DVC sees no order in a mapping."""
    drop: Drop
    held_out: HeldOut


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
    if (rows["source"] == "all").any():
        raise UserError("merge.sources: a source is called `all`, which in the summary means every source; rename it")


def check_sources(sources: Path, names: list[str]) -> None:
    fetched = {path.stem for path in sources.iterdir()}
    if fetched != set(names) or len(names) > len(set(names)):
        raise UserError(
            f"params.yaml: merge.sources and fetch.sources must name the same sources, each once: "
            f"only merge has {sorted(set(names) - fetched)}, only fetch has {sorted(fetched - set(names))}"
        )


def read_source(folder: Path, source: MergeSource, drop: Drop) -> pd.DataFrame:
    """Return the rows of one source, the columns those of `Row`."""
    path = next(path for path in folder.iterdir() if path.stem == source.name)
    columns: set[str] = set()
    rows = rows_table(to_row(record, source, columns) for record in read_records(path, source.encoding))
    bad = rows[~rows["readable"]]
    if len(bad) > drop.max_unreadable * len(rows):
        raise UserError(
            f"{path}: {len(bad)} of {len(rows)} rows are unreadable, more than merge.drop.max_unreadable allows "
            f"({drop.max_unreadable}); the first is row {bad['line'].iloc[0]}: {bad['unread'].iloc[0][:80]!r}. "
            f"Is the encoding of {source.name} in merge.sources ({source.encoding}) right?"
        )
    check_columns(path, source, columns)
    return rows


def rows_table(rows: Iterator[Row]) -> pd.DataFrame:
    """Build the table piece by piece, so that few rows at a time are Python's objects."""
    pieces = iter(lambda: list(islice(rows, PIECE)), [])
    return pd.concat([pd.DataFrame(piece, columns=Row._fields) for piece in pieces], ignore_index=True)


def check_columns(path: Path, source: MergeSource, there: set[str]) -> None:
    wanted = [*source.instruction, source.output, *([source.source] if source.source else [])]
    missing = [column for column in wanted if column not in there]
    if missing:
        listed = ", ".join(sorted(there))
        raise UserError(f"{path}: no column {', '.join(missing)}; it has {listed}; see {source.name} in merge.sources")


def to_row(record: Record, source: MergeSource, columns: set[str]) -> Row:
    """Return a record as a row; its columns are added to `columns`."""
    name, instruction, output = source.name, "", ""
    if record.values is not None:
        columns.update(record.values)
        parts = [clean_text(record.values.get(column, "")) for column in source.instruction]
        instruction = " ".join(part for part in parts if part)
        output = clean_text(record.values.get(source.output, ""))
        if source.source:
            name = clean_text(record.values.get(source.source, "")).split("_")[0] or name
    text = text_hash(name, instruction, output)
    return Row(name, record.line, instruction, output, text, record.values is not None, record.raw)


def clean_text(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def row_ids(rows: pd.DataFrame) -> list[str]:
    """Return an id for every row: a hash of source, instruction, output and, for a repeat, its number."""
    ids = list(rows["text"])
    number = rows.groupby("text").cumcount()
    again = rows.loc[number > 0, ["source", "instruction", "output"]]
    for row, *key in again.itertuples(name=None):
        ids[row] = text_hash(*key, str(number[row]))
    return ids


def drop_reasons(rows: pd.DataFrame, drop: Drop) -> pd.Series:
    """Return why each row is dropped, or null; the first reason that holds counts."""
    reason = pd.Series(None, index=rows.index, dtype=object)

    def mark(name: str, holds: pd.Series) -> None:
        reason.loc[reason.isna() & holds] = name

    mark("unreadable", ~rows["readable"])
    if drop.empty:
        mark("empty", (rows["instruction"] == "") | (rows["output"] == ""))
    if drop.max_characters is not None:
        mark("too_long", rows["instruction"].str.len() + rows["output"].str.len() > drop.max_characters)
    if drop.min_hangul is not None:
        mark("not_korean", rows["instruction"].map(hangul_share) < drop.min_hangul)
    if drop.duplicate:
        left = rows.loc[reason.isna(), ["instruction", "output"]]
        mark("duplicate", left.duplicated().reindex(rows.index, fill_value=False))
    return reason


def hangul_share(text: str) -> float:
    """Return the share of Hangul (syllables and jamo) among the letters; 0 where there is no letter."""
    letters = sum(map(str.isalpha, text))
    return sum(map(len, HANGUL.findall(text))) / letters if letters else 0.0


def dropped_text(bad: pd.DataFrame) -> list[str]:
    """Return what stood there: the row as it was where it is unreadable, else instruction and output."""
    rows = zip(bad["readable"], bad["unread"], bad["instruction"], bad["output"], strict=True)
    return [f"{instruction}\n\n{output}".strip() if readable else raw for readable, raw, instruction, output in rows]


def draw_held_out(clean: pd.DataFrame, settings: HeldOut) -> pd.Index:
    """Return the labels of the rows held out: a drawn instruction takes all its rows, whatever their source."""
    if clean.empty:
        return clean.index
    unknown = sorted(set(settings.sources) - set(clean["source"]))
    if unknown:
        raise UserError(
            f"params.yaml: merge.held_out.sources: no row has the source {', '.join(unknown)}; "
            f"there are {', '.join(sorted(set(clean['source'])))}"
        )
    text, texts = pd.factorize(clean["instruction"])
    sizes = np.bincount(text)
    pool = pd.unique(text[clean["source"].isin(settings.sources)])
    order = pd.Series(uniform_hash(list(texts[pool]), "held_out", settings.seed), index=pool).sort_values(kind="stable")
    drawn, room = [], settings.max_rows
    for instruction in order[order < settings.share].index:
        if sizes[instruction] <= room:  # an instruction of more rows is passed over, the next ones may fit
            drawn.append(instruction)
            room -= sizes[instruction]
    return clean.index[np.isin(text, drawn)]


def log_counts(rows: pd.DataFrame, kept: pd.Series, held: pd.Series) -> None:
    for source, reason in rows.groupby("source", sort=False)["reason"]:
        raw, out = int((kept == source).sum()), int((held == source).sum())
        why = dict(sorted(Counter(reason.dropna()).items()))
        if len(reason) != raw + out + sum(why.values()):
            raise AssertionError(f"{source}: {len(reason)} rows read, but {raw} + {out} + {why} written")
        log.info(
            "%s: %d rows read = %d raw + %d held out + %d dropped %s",
            source,
            len(reason),
            raw,
            out,
            sum(why.values()),
            why,
        )


if __name__ == "__main__":
    run(merge, Params)
