"""Find the rows that contain an item of the benchmark, verbatim or nearly: a model trained on them has seen the test.

    data/raw.parquet, data/benchmark, data/embeddings.parquet, models/hub/encoder -> data/leaks.parquet

Every row is compared with every item of every split, because few-shot examples come from the train split. Nothing is
dropped here: `candidates` excludes the rows that have `drop` in this table, and `report` counts them all.
"""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from stages.lib.core.artifacts import read_arrow, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section
from stages.lib.core.runner import run
from stages.lib.evaluation.contamination import FOUND, Decontaminate, read_benchmark, rows_with_items
from stages.lib.evaluation.metrics import ITEM
from stages.lib.scoring.encoder import Embed, embed_together
from stages.lib.selection.cells import read_vectors
from stages.lib.selection.neighbours import Close, near_items
from stages.lib.text.conversations import whole_texts

log = logging.getLogger("stages")
LEAKS = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("item", pa.int64()),
        ("kind", pa.string()),
        ("share", pa.float64()),
        ("text", pa.string()),
        ("item_text", pa.string()),
        ("drop", pa.bool_()),
    ]
)
"""A row that contains an item. `item` counts from 0 in its split, as in data/eval; `share`: of the item's n-grams that
the row has, or the similarity; `text`: instruction and output; `item_text`: the text of the item that was found;
`drop`: whether the row is no candidate."""
LISTED = 3
"""Leaks that the error of `fail` lists."""
KINDS = ("exact", "contained", "near", "restyled", "similar")
"""A field of the row equals the text; the row contains the text; most of the text's n-grams are in one place of the
row, or a sentence is similar to it; a sentence is the text in another style of speech or with other particles; the
instruction's vector is close to the text's."""


class Params(Section):
    threads: Positive
    portable: bool = False
    embed: Embed
    decontaminate: Decontaminate


def decontaminate(params: Params, raw: Path, benchmark: Path, embeddings: Path, encoder: Path, leaks: Path) -> None:
    settings = params.decontaminate
    corpus, items = read_arrow(raw), read_benchmark(benchmark, settings)
    found = pd.DataFrame(rows_with_items(corpus, list(items["normalised"].unique()), settings.rule()), columns=FOUND)
    found = found.merge(items, on="normalised")
    if settings.similar and len(items):
        vectors_ND, texts = read_vectors(embeddings, corpus["id"].to_pandas()), list(items["item_text"].unique())
        items_MD = embed_together(texts, encoder, params.embed, params.threads)
        with threadpool_limits(params.threads):
            close = near_items(vectors_ND, items_MD, settings.similar.listed_from)
        found = pd.concat([found, rows_like_items(corpus, texts, close).merge(items, on="item_text")])
    listed = strongest(found)
    certain = listed["kind"].map(settings.drops).astype(bool)
    listed["drop"] = certain & settings.drop
    write_table(leaks, listed, LEAKS)
    log_leaks(listed, len(corpus), len(items[ITEM].drop_duplicates()))
    if settings.fail and certain.any():
        raise UserError(leak_message(listed[certain], leaks))


def rows_like_items(corpus: pa.Table, texts: list[str], close: Close) -> pd.DataFrame:
    """Return row, id, kind, share (the cosine), text and item_text for every text that is close to an instruction."""
    instructions, outputs = (np.array(part, dtype=object) for part in whole_texts(corpus))
    columns = {"row": close.row, "id": corpus["id"].to_numpy()[close.row], "kind": "similar", "share": close.cosine}
    text = instructions[close.row] + "\n\n" + outputs[close.row]
    return pd.DataFrame(columns | {"text": text, "item_text": np.array(texts, dtype=object)[close.item]})


def strongest(found: pd.DataFrame) -> pd.DataFrame:
    """Keep one line for each row and item, with the strongest kind and the highest share; sorted by row, then item."""
    kinds = found["kind"].astype(pd.CategoricalDtype(KINDS, ordered=True))
    order = ["row", *ITEM, "kind", "share"]
    ordered = found.assign(kind=kinds).sort_values(order, ascending=[name != "share" for name in order])
    return ordered.drop_duplicates(["row", *ITEM]).astype({"kind": str})


def log_leaks(listed: pd.DataFrame, rows: int, items: int) -> None:
    for (task, split), group in listed.groupby(["task", "split"]):
        kinds = dict(sorted(Counter(group["kind"]).items()))
        log.info("%s, %s: %d items in %d rows %s", task, split, group["item"].nunique(), group["row"].nunique(), kinds)
    log.info("%s of %s rows contain one of %s items", f"{listed['row'].nunique():,}", f"{rows:,}", f"{items:,}")


def leak_message(listed: pd.DataFrame, leaks: Path) -> str:
    first = listed.head(LISTED).to_dict("records")
    lines = [
        f"\n  {x['id']} contains {x['task']} {x['split']} {x['item']} ({x['kind']}): {x['item_text']}" for x in first
    ]
    more = f"\n  ... and {len(listed) - LISTED} more in {leaks}" if len(listed) > LISTED else ""
    return (
        f"decontaminate.fail: {listed['row'].nunique()} rows contain an item of the benchmark; remove them from the "
        f"inputs, or set fail: false, and drop: true to leave them out of every arm{''.join(lines)}{more}"
    )


if __name__ == "__main__":
    run(decontaminate, Params)
