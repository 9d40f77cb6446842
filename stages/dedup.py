"""Find the rows that nearly equal an earlier row, in letters or in meaning.

    data/raw.parquet, data/embeddings.parquet -> data/duplicates.parquet

Nothing is dropped here: `candidates` excludes the rows that have `drop` in this table.
"""

import logging
from pathlib import Path

import pyarrow as pa

from stages.lib.core.params import Positive, Section, Share
from stages.lib.core.runner import run

log = logging.getLogger("stages")
DUPLICATES = pa.schema(
    [
        ("id", pa.string()),
        ("of", pa.string()),
        ("kind", pa.string()),
        ("similarity", pa.float64()),
        ("drop", pa.bool_()),
    ]
)
"""A pair of rows. `id` is the later one in the order of raw, `of` the earlier one; `kind`: lexical or semantic;
`similarity`: Jaccard similarity or cosine; `drop`: whether the later row is no candidate because of this pair."""


class Lexical(Section):
    ngram: Positive
    """Characters of an n-gram."""
    listed_from: Share
    """Jaccard similarity from which a pair is listed."""
    dropped_from: Share | None
    """Jaccard similarity from which the later row is no candidate; null drops none."""


class Semantic(Section):
    listed_from: Share
    """Cosine similarity from which a pair is listed."""
    dropped_from: Share | None
    """Cosine similarity from which the later row is no candidate; null drops none."""
    exact_rows: Positive
    """Up to this many rows, all pairs are compared; above, each row with those that share one of its two nearest
    centroids."""


class Dedup(Section):
    lexical: Lexical | None
    """Pairs that share most of their characters' n-grams; null finds none."""
    semantic: Semantic | None
    """Pairs whose embeddings are close; null finds none."""


class Params(Section):
    threads: Positive
    portable: bool = False
    dedup: Dedup


def dedup(params: Params, raw: Path, embeddings: Path, duplicates: Path) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    run(dedup, Params)
