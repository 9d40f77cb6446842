"""Merge the sources into one table of clean rows; every dropped row keeps its reason.

    data/sources/* -> data/raw.parquet, data/held_out.jsonl, data/dropped.parquet

Rows read = raw + held out + dropped, for every source. Only this stage orders or drops rows: sources in the order of
`merge.sources`, then lines.
"""

import logging
import unicodedata
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa

from stages.lib.artifacts import write_jsonl, write_table
from stages.lib.hashes import dice, text_hash
from stages.lib.params import Count, Positive, Section, Share
from stages.lib.records import Record, read_records
from stages.lib.stage import run
from stages.lib.stop import Stop

log = logging.getLogger("stages")
COLUMNS = ["id", "source", "instruction", "output"]
RAW = pa.schema([(name, pa.string()) for name in COLUMNS])
DROPPED = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())]
)


class Source(Section):
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
    sources: list[Source]
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
    rows["reason"] = reasons(rows, settings.drop)

    clean, bad = rows[rows["reason"].isna()], rows[rows["reason"].notna()]
    held = pd.Series(False, index=clean.index) if clean.empty else draw_held_out(clean, settings.held_out)
    kept = clean[~held]
    if kept.empty:
        raise Stop(
            f"params.yaml: merge: no row is left of {len(rows)}: {int(held.sum())} held out, dropped "
            f"{dict(Counter(bad['reason']))}; look at merge.drop and merge.held_out"
        )
    write_table(raw, kept, RAW)
    write_jsonl(held_out, clean[held][COLUMNS].to_dict("records"))
    ids = bad["id"].where(bad["reason"] != "unreadable", None)
    write_table(dropped, bad.assign(id=ids, text=bad["raw_text"]), DROPPED)
    say_counts(rows, kept, clean[held])


def check_names(rows: pd.DataFrame) -> None:
    if (rows["source"] == "all").any():
        raise Stop("merge.sources: a source is called `all`, which in the summary means every source; rename it")


def check_sources(sources: Path, names: list[str]) -> None:
    fetched = {path.stem for path in sources.iterdir()}
    if fetched != set(names) or len(names) > len(set(names)):
        raise Stop(
            f"params.yaml: merge.sources and fetch.sources must name the same sources, each once: "
            f"only merge has {sorted(set(names) - fetched)}, only fetch has {sorted(fetched - set(names))}"
        )


def read_source(folder: Path, source: Source, drop: Drop) -> pd.DataFrame:
    """Return the rows of one source: source, line, instruction, output, raw_text, readable."""
    path = next(path for path in folder.iterdir() if path.stem == source.name)
    records = read_records(path, source.encoding)
    bad = [record for record in records if record.values is None]
    if len(bad) > drop.max_unreadable * len(records):
        raise Stop(
            f"{path}: {len(bad)} of {len(records)} rows are unreadable, more than merge.drop.max_unreadable allows "
            f"({drop.max_unreadable}); the first is row {bad[0].line}: {bad[0].raw[:80]!r}. "
            f"Is the encoding of {source.name} in merge.sources ({source.encoding}) right?"
        )
    check_columns(path, source, records)
    return pd.DataFrame([to_row(record, source) for record in records])


def check_columns(path: Path, source: Source, records: list[Record]) -> None:
    there = {column for record in records if record.values is not None for column in record.values}
    wanted = [*source.instruction, source.output, *([source.source] if source.source else [])]
    missing = [column for column in wanted if column not in there]
    if missing:
        listed = ", ".join(sorted(there))
        raise Stop(f"{path}: no column {', '.join(missing)}; it has {listed}; see {source.name} in merge.sources")


def to_row(record: Record, source: Source) -> dict[str, object]:
    values = record.values
    row = {"source": source.name, "line": record.line, "readable": values is not None}
    if values is None:
        return row | {"instruction": "", "output": "", "raw_text": record.raw}
    parts = [clean_text(values.get(column, "")) for column in source.instruction]
    instruction = " ".join(part for part in parts if part)
    output = clean_text(values.get(source.output, ""))
    if source.source:
        row["source"] = clean_text(values.get(source.source, "")).split("_")[0] or source.name
    return row | {"instruction": instruction, "output": output, "raw_text": f"{instruction}\n\n{output}".strip()}


def clean_text(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def row_ids(rows: pd.DataFrame) -> list[str]:
    """Return an id for every row: a hash of source, instruction, output and, for a repeat, its number."""
    seen: Counter[tuple[str, str, str]] = Counter()
    ids = []
    for key in zip(rows["source"], rows["instruction"], rows["output"], strict=True):
        ids.append(text_hash(*key, *([str(seen[key])] if seen[key] else [])))
        seen[key] += 1
    return ids


def reasons(rows: pd.DataFrame, drop: Drop) -> pd.Series:
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
        left = rows[reason.isna()]
        mark("duplicate", left.duplicated(["instruction", "output"]).reindex(rows.index, fill_value=False))
    return reason


def hangul_share(text: str) -> float:
    """Return the share of Hangul (syllables and jamo) among the letters; 0 where there is no letter."""
    letters = [character for character in text if character.isalpha()]
    hangul = sum("\uac00" <= c <= "\ud7a3" or "\u3131" <= c <= "\u318e" or "\u1100" <= c <= "\u11ff" for c in letters)
    return hangul / len(letters) if letters else 0.0


def draw_held_out(clean: pd.DataFrame, settings: HeldOut) -> pd.Series:
    """Return which rows are held out: a drawn instruction takes all its rows, whatever their source."""
    unknown = sorted(set(settings.sources) - set(clean["source"]))
    if unknown:
        raise Stop(
            f"params.yaml: merge.held_out.sources: no row has the source {', '.join(unknown)}; "
            f"there are {', '.join(sorted(set(clean['source'])))}"
        )
    rows_of = clean["instruction"].value_counts().to_dict()
    pool = clean.loc[clean["source"].isin(settings.sources), "instruction"].drop_duplicates()
    order = pd.Series(dice(list(pool), "held_out", settings.seed), index=list(pool)).sort_values(kind="stable")
    drawn, room = set(), settings.max_rows
    for instruction in order[order < settings.share].index:
        if rows_of[instruction] <= room:  # an instruction of more rows is passed over, the next ones may fit
            drawn.add(instruction)
            room -= rows_of[instruction]
    return clean["instruction"].isin(drawn)


def say_counts(rows: pd.DataFrame, kept: pd.DataFrame, held: pd.DataFrame) -> None:
    for source, group in rows.groupby("source", sort=False):
        raw, out = int((kept["source"] == source).sum()), int((held["source"] == source).sum())
        why = dict(sorted(Counter(group["reason"].dropna()).items()))
        if len(group) != raw + out + sum(why.values()):
            raise AssertionError(f"{source}: {len(group)} rows read, but {raw} + {out} + {why} written")
        log.info(
            "%s: %d rows read = %d raw + %d held out + %d dropped %s",
            source,
            len(group),
            raw,
            out,
            sum(why.values()),
            why,
        )


if __name__ == "__main__":
    run(merge, Params)
