"""Which rows contain an item of the benchmark: the rule of the contamination check.

The items are the texts in data/benchmark that identify one; a row contains one if it has it verbatim, nearly, or in
another style of speech (`text/overlap.py`, `text/style.py`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow as pa
from pydantic import Field, model_validator

from stages.lib.core.artifacts import read_jsonl
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section, Share
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.evaluation.metrics import ITEM
from stages.lib.text.conversations import whole_texts
from stages.lib.text.overlap import SHORT, Rule, containment, is_separate, normalise, overlapping, similarity
from stages.lib.text.style import restyled

FOUND = ["row", "id", "kind", "share", "text", "normalised"]
LONG = 12
"""In a task outside KoBEST, a text column of at least this many letters and digits identifies its item ..."""
SHARED = 4
"""... unless more items than this have the same text (in KoBEST, up to 4 do): then it is a phrase of the task."""


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
