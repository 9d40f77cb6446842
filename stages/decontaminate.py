"""Find the rows that contain an item of the benchmark, verbatim or nearly: a model trained on them has seen the test.

    data/raw.parquet, data/benchmark, data/embeddings.parquet, models/hub/encoder -> data/leaks.parquet

Every row is compared with every item of every split, because few-shot examples come from the train split. Nothing is
dropped here: `candidates` excludes the rows that have `drop` in this table, and `report` counts them all.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field, model_validator
from threadpoolctl import threadpool_limits

from stages.lib.core.artifacts import read_arrow, read_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section, Share
from stages.lib.core.runner import run
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.evaluation.metrics import ITEM
from stages.lib.scoring.encoder import Embed, embed_together
from stages.lib.selection.cells import read_vectors
from stages.lib.selection.neighbours import Close, near_items
from stages.lib.text.conversations import whole_texts
from stages.lib.text.overlap import SHORT, Rule, containment, is_separate, normalise, overlapping, similarity
from stages.lib.text.style import restyled

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
FOUND = ["row", "id", "kind", "share", "text", "normalised"]
LONG = 12
"""In a task outside KoBEST, a text column of at least this many letters and digits identifies its item ..."""
SHARED = 4
"""... unless more items than this have the same text (in KoBEST, up to 4 do): then it is a phrase of the task."""
LISTED = 3
"""Leaks that the error of `fail` lists."""
KINDS = ("exact", "contained", "near", "restyled", "similar")
"""A field of the row equals the text; the row contains the text; most of the text's n-grams are in one place of the
row, or a sentence is similar to it; a sentence is the text in another style of speech or with other particles; the
instruction's vector is close to the text's."""


class Similar(Section):
    listed_from: Annotated[float, Field(gt=0, le=1)]
    """Least cosine similarity of a listed row; the right value depends on the encoder (see `tools.calibrate`)."""
    drop: bool
    """Whether `drop` and `fail` also apply to rows whose kind is `similar`."""


class Decontaminate(Section):
    min_characters: Positive
    """Letters and digits of the shortest text that identifies an item; a shorter one is in too many rows."""
    ngram: Positive
    """Characters of an n-gram; at most `min_characters`."""
    share: Share
    """Minimum share of the distinct n-grams of an item's text that a near copy has, in one place."""
    min_ngrams: Positive
    """Minimum number of n-grams of a near copy. A text with fewer is found only if it is separate from other text."""
    drop: bool
    """Whether no arm may select the rows found."""
    drop_restyled: bool
    """Whether `drop` and `fail` also apply to rows whose kind is `restyled`."""
    similar: Similar | None
    """Every item whose embedding is close to that of the row's instruction; Open-Platypus (Lee et al. 2023, arXiv
    2308.07317) checks only the closest one. Null finds none."""
    fail: bool
    """Whether finding a row stops the stage."""

    @model_validator(mode="after")
    def every_text_has_an_ngram(self) -> "Decontaminate":
        if self.ngram > self.min_characters:
            raise ValueError(f"ngram ({self.ngram}) is longer than min_characters ({self.min_characters})")
        return self

    def rule(self) -> Rule:
        return Rule(self.ngram, self.share, self.min_ngrams)

    def drops(self, kind: str) -> bool:
        """Return whether `drop` and `fail` apply to rows of this kind."""
        others = {"restyled": self.drop_restyled, "similar": self.similar is not None and self.similar.drop}
        return others.get(kind, True)


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


def read_benchmark(benchmark: Path, settings: Decontaminate) -> pd.DataFrame:
    """Return task, split, item, item_text and its normalised form for every text that identifies an item."""
    rows = [
        {"task": path.parent.name, "split": path.stem, "item": number, "item_text": text}
        for path in sorted(benchmark.glob("*/*.jsonl"))
        for number, item in enumerate(read_jsonl(path))
        for text in identifying_texts(path.parent.name, item)
    ]
    if not rows:
        raise UserError(f"{benchmark}: no items in <task>/<split>.jsonl; run `dvc repro fetch_benchmark`")
    texts = pd.DataFrame(rows)
    texts["normalised"] = texts["item_text"].map(normalise)
    texts = texts.drop_duplicates([*ITEM, "normalised"])
    sharing = texts.groupby(["task", "normalised"])["item"].transform("size")
    identifies = texts["task"].isin(list(KOBEST)) | (sharing <= SHARED)
    return texts[identifies & (texts["normalised"].str.len() >= settings.min_characters)]


def identifying_texts(task: str, item: dict[str, Any]) -> list[str]:
    texts = {column: value for column, value in item.items() if isinstance(value, str)}
    if task in KOBEST:
        identifying = [texts[column] for column in KOBEST[task].identifying if column in texts]
    else:
        identifying = [text for text in texts.values() if len(normalise(text)) >= LONG]
    return [*identifying, " ".join(texts.values())]


def rows_with_items(corpus: pa.Table, texts: list[str], rule: Rule) -> Iterator[tuple[Any, ...]]:
    """Yield the columns `FOUND` for every row that contains one of these texts, in any of its turns."""
    ids, (instructions, outputs) = corpus["id"].to_pylist(), whole_texts(corpus)
    wholes = [normalise(f"{i} {o}") for i, o in zip(instructions, outputs, strict=True)]
    for row, number in overlapping(wholes, texts, rule):
        instruction, output, text = instructions[row], outputs[row], texts[number]
        kind, share = match_kind(text, instruction, output, wholes[row], rule)
        if kind:
            yield row, ids[row], kind, share, f"{instruction}\n\n{output}", text
    for row, number in restyled(list(zip(instructions, outputs, strict=True)), texts, rule.ngram):
        text = f"{instructions[row]}\n\n{outputs[row]}"
        yield row, ids[row], "restyled", 1.0, text, texts[number]


def rows_like_items(corpus: pa.Table, texts: list[str], close: Close) -> pd.DataFrame:
    """Return row, id, kind, share (the cosine), text and item_text for every text that is close to an instruction."""
    instructions, outputs = (np.array(part, dtype=object) for part in whole_texts(corpus))
    columns = {"row": close.row, "id": corpus["id"].to_numpy()[close.row], "kind": "similar", "share": close.cosine}
    text = instructions[close.row] + "\n\n" + outputs[close.row]
    return pd.DataFrame(columns | {"text": text, "item_text": np.array(texts, dtype=object)[close.item]})


def match_kind(text: str, instruction: str, output: str, whole: str, rule: Rule) -> tuple[str | None, float]:
    """Return how a row contains a normalised text, and the share of its n-grams; None if it does not contain it."""
    if text in (whole, normalise(instruction), normalise(output)):
        return "exact", 1.0
    if text in whole:
        leaked = rule.near(text, 1.0) or is_separate(text, instruction, output)
        return ("contained" if leaked else None), 1.0
    share = containment(whole, text, rule.ngram)
    if rule.near(text, share):
        return "near", share
    similar = similarity(text, instruction, output) if rule.short(text) and share >= SHORT else 0.0
    return ("near" if similar else None), similar


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
