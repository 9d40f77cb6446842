"""Explain why a row is in or out of each arm: `python -m tools.why ID`, where ID can also be a piece of its text.

Reads data/reviews.jsonl and what the stages wrote: data/raw.parquet, data/held_out.jsonl, data/dropped.parquet,
data/candidates.parquet, data/leaks.parquet and data/samples/*.parquet.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from stages.lib.core.artifacts import read_arrow, read_jsonl, read_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_yaml
from stages.lib.selection.candidates import CELL, NEAR
from stages.lib.selection.methods import METHODS
from stages.lib.selection.partitions import count_partitions, take_partition
from stages.lib.selection.reviews import READ, Review, read_reviews, review_hashes
from stages.lib.text.overlap import without_particles
from tools.output import print_lines

MAX_ROWS = 10
"""Maximum number of rows to explain, because many rows can contain the same piece of text."""


def why(query: str, data: Path = Path("data")) -> Iterator[str]:
    """Yield an explanation of each row whose id or text matches `query`; raise UserError if there is none."""
    raw, held_out = read_table(data / "raw.parquet"), pd.DataFrame(read_jsonl(data / "held_out.jsonl"))
    found = list(explain_raw(raw[matches(raw, query)], held_out, data))
    for row in held_out[matches(held_out, query)].to_dict("records") if len(held_out) else []:
        found.append(f"{title(row)}\n  held out: in no arm")
    dropped = read_table(data / "dropped.parquet").rename(columns={"text": "instruction"}).assign(output="")
    for row in dropped[matches(dropped, query)].to_dict("records"):
        found.append(f"{title(row)}\n  dropped by merge: {row['reason']}, row {row['line']} of {row['source']}")
    if not found:
        raise UserError(f"no row has the id {query!r} or contains it in its text; data/raw.parquet has the ids")
    yield from found[:MAX_ROWS]
    if len(found) > MAX_ROWS:
        yield f"... and {len(found) - MAX_ROWS} more; give an id, or a longer piece of text"


def matches(rows: pd.DataFrame, query: str) -> pd.Series:
    text = rows["instruction"].str.contains(query, regex=False) | rows["output"].str.contains(query, regex=False)
    if "turns" in rows:
        spoken = rows["turns"].dropna()
        text.loc[spoken.index] |= spoken.map(lambda turns: any(query in turn["text"] for turn in turns)).astype(bool)
    return (rows["id"] == query) | text


def explain_raw(rows: pd.DataFrame, held_out: pd.DataFrame, data: Path) -> Iterator[str]:
    """Yield the cells, scores, reviews and leaks of each of these rows of raw, and what every arm did with it."""
    candidates, leaks = read_table(data / "candidates.parquet"), read_table(data / "leaks.parquet")
    arms = read_yaml(PARAMS)["arms"]
    samples = {arm: read_table(data / f"samples/{arm}.parquet", "rank", "selected", "reason") for arm in arms}
    first, *others = (take_partition(candidates, partition) for partition in range(count_partitions(candidates)))
    scores = first.select_dtypes("number").drop(columns=CELL)
    reviews = reviews_of(rows, data)
    for number, row in rows.iterrows():
        cells = [f"cell {name_cell(first.loc[number])}"]
        cells += [f"cell {name_cell(table.loc[number])} in partition {p}" for p, table in enumerate(others, 1)]
        values = [f"{name} {value:.4g}" for name, value in scores.loc[number].dropna().items()]
        lines = [title(row.to_dict()), "  " + ", ".join([*cells, *values])]
        lines += [f"  reviewed out by {review.who}: {review.why}" for review in reviews[row["id"]]]
        lines += [f"  {describe_leak(leak)}" for leak in leaks[leaks["id"] == row["id"]].to_dict("records")]
        if candidates.loc[number, "reason"] == NEAR:
            lines += [f"  {NEAR}: {title(other)}" for other in held_out_near(row["instruction"], held_out)]
        for arm, settings in arms.items():
            lines.append(f"  {arm}: {describe_selection(samples[arm].loc[number], settings)}")
        yield "\n".join(lines)


def reviews_of(rows: pd.DataFrame, data: Path) -> dict[str, list[Review]]:
    """Return the reviews of each of these rows of raw, by its id."""
    texts = read_arrow(data / "raw.parquet", *READ).take(pa.array(rows.index, pa.int64()))
    reviews = read_reviews(data / "reviews.jsonl")
    return {
        row: [review for review in reviews if row == review.id or text == review.text_hash]
        for row, text in zip(rows["id"], review_hashes(texts), strict=True)
    }


def name_cell(row: pd.Series) -> str:
    return f"{row['length_group']}.{row['cluster']}"


def held_out_near(instruction: str, held_out: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the held-out rows that the instruction nearly equals."""
    return held_out[held_out["instruction"].map(without_particles) == without_particles(instruction)].to_dict("records")


def describe_leak(leak: dict[str, Any]) -> str:
    item = f"{leak['task']} {leak['split']} {leak['item']}"
    return f"leak ({leak['kind']}): {item}, {leak['item_text']}{'' if leak['drop'] else '; kept'}"


def describe_selection(sample: pd.Series, arm: dict[str, Any]) -> str:
    by = arm.get("by") or METHODS[arm["method"]].by
    known = by and not pd.isna(sample["rank"])
    rank = f"; rank {int(sample['rank'])} of {name_group(arm)} by {by}" if known else ""
    return f"{'IN' if sample['selected'] else 'out'} ({sample['reason']}{rank})"


def name_group(arm: dict[str, Any]) -> str:
    cell = f"its cell in partition {arm['partition']}" if arm.get("partition") else "its cell"
    return {"source": "its source", "whole": "the corpus"}.get(arm.get("allocation", "exact"), cell)


def title(row: dict[str, Any]) -> str:
    text = " ".join(str(row["instruction"]).split())
    row_id = "no id" if pd.isna(row["id"]) else row["id"]
    return f"{row_id} [{row['source']}] {text[:80]}{'...' if len(text) > 80 else ''}"


def main(words: list[str]) -> int:
    if len(words) != 1:
        print("usage: python -m tools.why ID, or a piece of the text in quotes", file=sys.stderr)
        return 2
    return print_lines(why(words[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
