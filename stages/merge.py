"""Merge the sources into one table of clean rows, and keep every dropped row with its reason.

    data/sources/* -> data/raw.parquet, data/held_out.jsonl, data/dropped.parquet

For each source, rows read = raw + held out + dropped. Only this stage orders or drops rows. They are in the order of
`merge.sources`, then of file names, then of lines.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.lib.core.artifacts import write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Seed, Share
from stages.lib.core.runner import run
from stages.lib.reading.entry import MergeSource
from stages.lib.reading.rows import Mapped, read_source
from stages.lib.reading.turns import UNREADABLE
from stages.lib.text.conversations import TURNS, as_column, to_rows, whole_texts
from stages.lib.text.hashing import text_hash
from stages.lib.text.held_out import draw_texts
from stages.lib.text.korean import (
    answers_in_korean,
    has_broken_characters,
    has_foreign_script,
    is_korean,
    same_text,
)

log = logging.getLogger("stages")
HASHED = ["source", "instruction", "output", "turns"]
COLUMNS = ["id", *HASHED, "final"]
RAW = pa.schema([(name, TURNS if name == "turns" else pa.string()) for name in COLUMNS])
"""`turns` is null if the row is one question and its answer (see `lib/text/conversations.py`); `final` is null if the
source has no field for the final answer."""
DROPPED = pa.schema(
    [
        (name, pa.int64() if name == "line" else pa.string())
        for name in ("id", "source", "file", "line", "reason", "text")
    ]
)
CHUNK = 100_000
"""Most rows that exist as Python objects at once."""


class Drop(Section):
    empty: bool
    """Rows without an instruction or without an output."""
    duplicate: Literal["exact", "normalised"] | None
    """Rows that repeat the texts of an earlier row, in any source: exactly, or apart from spaces, punctuation, case and
    width (`normalised`); null drops none."""
    max_characters: Positive | None
    """Rows with more characters in instruction and output together; null drops none."""
    min_korean: Share | None
    """Rows with a smaller share of Korean words in the first field of the instruction; null drops none."""
    min_korean_output: Share | None
    """Rows with a smaller share of Korean words in the output, unless they ask for another language or for code; null
    drops none."""
    foreign_script: bool
    """Rows with a foreign script inside a Korean output: 채소를 とても 많이 드세요."""
    broken_characters: bool
    """Rows with U+FFFD or private-use characters."""
    max_unreadable: Share
    """Largest share of unreadable rows in a source; a larger share stops the stage."""


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
    rows = pd.concat([read_rows(sources, source, settings.drop) for source in settings.sources], ignore_index=True)
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
    write_jsonl(held_out, to_rows(pa.Table.from_pandas(drawn, RAW, preserve_index=False)))
    write_table(dropped, bad.assign(id=bad["id"].where(bad["is_row"], None), text=dropped_text(bad)), DROPPED)
    log_counts(rows[["source", "reason"]], kept["source"], drawn["source"])


def check_names(rows: pd.DataFrame) -> None:
    """Raise UserError if a source has the name that means all sources in the summary."""
    if (rows["source"] == "all").any():
        raise UserError("merge.sources: a source is called `all`, which means every source in the summary; rename it")


def check_sources(sources: Path, names: list[str]) -> None:
    """Raise UserError unless the fetched sources are the named ones, each named once."""
    fetched = {path.name for path in sources.iterdir()}
    if fetched != set(names) or len(names) > len(set(names)):
        raise UserError(
            f"params.yaml: merge.sources and fetch.sources must name the same sources, each once: "
            f"only merge has {sorted(set(names) - fetched)}, only fetch has {sorted(fetched - set(names))}"
        )


def read_rows(folder: Path, source: MergeSource, drop: Drop) -> pd.DataFrame:
    """Return the rows of one source, with the columns of `chunk_table` and `is_row`."""
    path = folder / source.name
    rows = rows_table(read_source(path, source))
    bad = rows[rows["reason"] == UNREADABLE]
    if len(bad) > drop.max_unreadable * len(rows):
        raise UserError(
            f"{path}: {len(bad)} of {len(rows)} rows are unreadable, more than merge.drop.max_unreadable allows "
            f"({drop.max_unreadable}); the first is row {bad['line'].iloc[0]} of {bad['file'].iloc[0]}: "
            f"{bad['original'].iloc[0][:80]!r}. Is the encoding of {source.name} in merge.sources "
            f"({source.encoding}) right?"
        )
    rows["is_row"] = rows["reason"].isna()
    return rows


def rows_table(rows: Iterator[Mapped]) -> pd.DataFrame:
    """Return the rows as a table, built in chunks because rows as Python objects need far more memory."""
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    return pd.concat([chunk_table(chunk) for chunk in chunks], ignore_index=True)


def chunk_table(rows: list[Mapped]) -> pd.DataFrame:
    """Return the rows as a table, with the fields of `Mapped`, `asked`, `answered` and `text_hash` as columns.

    `asked` and `answered` are the instruction and the output; of a conversation, what was said in all of its turns.
    """
    table = pd.DataFrame(rows, columns=Mapped._fields)
    turns = as_column(row.turns for row in rows)
    asked, answered = whole_texts(
        pa.table({"instruction": table["instruction"], "output": table["output"], "turns": turns})
    )
    table = table.assign(turns=turns.to_pylist(), asked=asked, answered=answered)
    return table.assign(text_hash=[text_hash(*row_texts(*row)) for row in table[HASHED].itertuples(index=False)])


def row_texts(source: str, instruction: str, output: str, turns: list[dict[str, str]] | None) -> Iterator[str]:
    """Yield what the id of a row depends on."""
    yield from (source, instruction, output)
    for turn in turns or ():
        yield from (turn["role"], turn["text"])


def row_ids(rows: pd.DataFrame) -> list[str]:
    """Return the id of each row: a hash of its source and texts; if the row occurs again, its number is hashed too."""
    ids = list(rows["text_hash"])
    number = rows.groupby("text_hash").cumcount()
    for row in number.index[number > 0]:
        ids[row] = text_hash(*row_texts(*rows.loc[row, HASHED]), str(number[row]))
    return ids


def drop_reasons(rows: pd.DataFrame, drop: Drop) -> pd.Series:
    """Return why each row is dropped, or null if it stays. The first reason that applies counts."""
    reason = rows["reason"].astype(object).where(~rows["is_row"], None)

    def mark(name: str, applies: pd.Series) -> None:
        reason.loc[reason.isna() & applies] = name

    if drop.empty:
        mark("empty", (rows["instruction"] == "") | (rows["output"] == ""))
    if drop.max_characters is not None:
        mark("too_long", rows["asked"].str.len() + rows["answered"].str.len() > drop.max_characters)
    mark_not_korean(rows, drop, mark)
    if drop.duplicate is not None:
        left = rows.loc[reason.isna(), ["asked", "answered"]]
        if drop.duplicate == "normalised":
            left = left.apply(lambda column: column.map(same_text))
        mark("duplicate", left.duplicated().reindex(rows.index, fill_value=False))
    return reason


def mark_not_korean(rows: pd.DataFrame, drop: Drop, mark: Callable[[str, pd.Series], None]) -> None:
    """Mark the rows that are broken or not Korean."""
    pairs = list(zip(rows["asked"], rows["answered"], strict=True))

    def pick(applies: Iterable[bool]) -> pd.Series:
        return pd.Series(list(applies), index=rows.index, dtype=bool)

    if drop.broken_characters:
        mark("broken_characters", pick(has_broken_characters(f"{asked}{answered}") for asked, answered in pairs))
    if drop.min_korean is not None:
        mark("not_korean", pick(not is_korean(text, drop.min_korean) for text in rows["request"]))
    if drop.min_korean_output is not None:
        mark("output_not_korean", pick(not answers_in_korean(*pair, drop.min_korean_output) for pair in pairs))
    if drop.foreign_script:
        mark("foreign_script", pick(has_foreign_script(*pair) for pair in pairs))


def dropped_text(bad: pd.DataFrame) -> list[str]:
    """Return the texts of each dropped row, or the record as it was if it is not a row."""
    rows = zip(bad["is_row"], bad["original"], bad["asked"], bad["answered"], strict=True)
    return [f"{asked}\n\n{answered}".strip() if is_row else original for is_row, original, asked, answered in rows]


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
    drawn = draw_texts(texts[eligible], sizes[eligible], settings.share, settings.max_rows, "held_out", settings.seed)
    return clean.index[np.isin(text, eligible[drawn])]


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
