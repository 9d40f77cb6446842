"""Find the rows that nearly equal an earlier row, in letters or in meaning.

    data/raw.parquet, data/embeddings.parquet -> data/duplicates.parquet

In the order of raw, a row is dropped if it is similar enough, in one of the two ways, to an earlier row that is kept.
So in a chain of rows, each similar only to the next, every other row stays; and a row appended to raw changes nothing
before it (above `exact_rows`, it may change which rows are compared in meaning).

Nothing is dropped here: `candidates` excludes the rows that have `drop` in this table.
"""

import logging
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator
from threadpoolctl import threadpool_limits

from stages.lib.core.artifacts import read_arrow, write_table
from stages.lib.core.params import Positive, Section, Share
from stages.lib.core.runner import run
from stages.lib.selection.cells import read_vectors
from stages.lib.selection.neighbours import near_in_meaning
from stages.lib.text.conversations import whole_texts
from stages.lib.text.near_duplicates import Near, Read, comparable, near_in_letters
from stages.lib.text.overlap import Ints

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
"""A pair of rows, sorted in the order of raw. `id` is the later one, `of` the earlier one; `kind`: lexical or semantic;
`similarity`: Jaccard similarity or cosine; `drop`: whether the later row is no candidate because of this pair. A row
that equals earlier rows is listed only with the first of them, and no other row is listed with it."""


class Lexical(Section):
    ngram: Positive
    """Characters of an n-gram."""
    listed_from: Annotated[float, Field(ge=0.5, le=1)]
    """Least Jaccard similarity of a listed pair. From 0.7, practically every pair is found; at 0.6, 99 of 100."""
    dropped_from: Share | None
    """Least Jaccard similarity at which an earlier row that stays drops a later one; at least `listed_from`. Null drops
    none."""


class Semantic(Section):
    listed_from: Annotated[float, Field(gt=0, le=1)]
    """Least cosine similarity of a listed pair; the right value depends on the encoder (see `tools.calibrate`)."""
    dropped_from: Share | None
    """Least cosine similarity at which an earlier row that stays drops a later one; at least `listed_from`. Null drops
    none."""
    exact_rows: Positive
    """Up to this many different vectors, all pairs are compared; above it, only rows that share one of their
    nearest centroids."""


class Dedup(Section):
    lexical: Lexical | None
    """Pairs that share most of their character n-grams; null finds none."""
    semantic: Semantic | None
    """Pairs whose embeddings are close; null finds none."""

    @model_validator(mode="after")
    def dropped_pairs_are_listed(self) -> "Dedup":
        for name, kind in (("lexical", self.lexical), ("semantic", self.semantic)):
            if kind and kind.dropped_from is not None and kind.dropped_from < kind.listed_from:
                raise ValueError(f"{name}: dropped_from ({kind.dropped_from}) is below listed_from")
        return self


class Params(Section):
    threads: Positive
    portable: bool = False
    dedup: Dedup


def dedup(params: Params, raw: Path, embeddings: Path, duplicates: Path) -> None:
    corpus = read_arrow(raw, "id", "instruction", "output", "turns")
    lexical, semantic = params.dedup.lexical, params.dedup.semantic
    found: dict[str, tuple[Near, float | None]] = {}
    if lexical:
        near = near_in_letters(reader(corpus), len(corpus), lexical.ngram, lexical.listed_from)
        found["lexical"] = near, lexical.dropped_from
    if semantic:
        vectors_ND = read_vectors(embeddings, corpus["id"].to_pandas())
        with threadpool_limits(params.threads):
            near = near_in_meaning(vectors_ND, semantic.listed_from, semantic.exact_rows)
        found["semantic"] = near, semantic.dropped_from
    pairs = mark_dropped(found)
    ids = corpus["id"].to_numpy()
    write_table(duplicates, pairs.assign(id=ids[pairs["later"]], of=ids[pairs["earlier"]]), DUPLICATES)
    log_duplicates(pairs, len(corpus))


def reader(corpus: pa.Table) -> Read:
    """Return a function that returns the text of each row to compare: all that was asked and answered."""

    def read(rows: Ints) -> list[str]:
        part = corpus.slice(rows[0], rows[-1] - rows[0] + 1).take(rows - rows[0])
        return [comparable(f"{asked} {answered}") for asked, answered in zip(*whole_texts(part), strict=True)]

    return read


def mark_dropped(found: dict[str, tuple[Near, float | None]]) -> pd.DataFrame:
    """Return the pairs of every kind with `later`, `earlier` (rows), `kind`, `similarity` and `drop`, sorted."""
    links = {kind: link(near, least) for kind, (near, least) in found.items() if least is not None}
    kept = dict(zip(links, keep_greedily(list(links.values())), strict=True))
    tables = [pd.DataFrame({"later": [], "earlier": [], "similarity": []}, dtype=np.int64).assign(kind="", drop=False)]
    for kind, (near, least) in found.items():
        table = list_pairs(near).assign(kind=kind, drop=False)
        if least is not None:
            table["drop"] = (table["similarity"] >= least) & is_dropped_by(table, links[kind], kept[kind])
        tables.append(table)
    return pd.concat(tables).sort_values(["later", "earlier", "kind"], ignore_index=True)


def list_pairs(near: Near) -> pd.DataFrame:
    """Return `later`, `earlier` and `similarity`: of rows that equal an earlier one, then of the pairs found."""
    equal = np.flatnonzero(near.first != np.arange(len(near.first)))
    columns = {
        "later": (equal, near.later),
        "earlier": (near.first[equal], near.earlier),
        "similarity": (np.ones(len(equal)), near.similarity),
    }
    return pd.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})


class Links(NamedTuple):
    """Which rows of one kind may drop which. Rows that equal each other are one node, named by the first of them."""

    node: Ints
    """Of each row [N]."""
    linked: Ints
    """The nodes that may drop node 0, itself included, then those that may drop node 1, and so on."""
    start: Ints
    """Position in `linked` of the first node for each node [N]."""


def link(near: Near, least: float) -> Links:
    similar, rows = near.similarity >= least, np.arange(len(near.first))
    one, other = near.later[similar], near.earlier[similar]
    ends = np.concatenate([rows, one, other])
    order = np.argsort(ends, kind="stable")
    return Links(near.first, np.concatenate([rows, other, one])[order], np.searchsorted(ends[order], rows))


def keep_greedily(kinds: list[Links]) -> list[Ints]:
    """Return for each kind the first row that is kept of each node [N]; N if none is.

    In order, a row is kept unless a row of a node linked with its own is kept already. Rows without a link are left
    out, because they drop no row.
    """
    rows = len(kinds[0].node) if kinds else 0
    kept = [np.full(rows, rows) for _ in kinds]
    alone = np.ones(rows, dtype=bool)
    for links in kinds:
        count = np.diff(links.start, append=len(links.linked))
        alone &= (count == 1)[links.node] & (np.bincount(links.node, minlength=rows) == 1)[links.node]
    for row in np.flatnonzero(~alone):
        nodes = [(links, first, links.node[row]) for links, first in zip(kinds, kept, strict=True)]
        if all(first[linked_with(links, node)].min() > row for links, first, node in nodes):
            for _, first, node in nodes:
                first[node] = row
    return kept


def linked_with(links: Links, node: int) -> Ints:
    end = links.start[node + 1] if node + 1 < len(links.start) else len(links.linked)
    return links.linked[links.start[node] : end]


def is_dropped_by(pairs: pd.DataFrame, links: Links, kept: Ints) -> NDArray[np.bool_]:
    """Return whether a row that drops the later one was kept: one that equals the earlier row of the pair or, if the
    two rows of the pair are equal, one that is similar to both."""
    later, earlier = pairs["later"].to_numpy(), pairs["earlier"].to_numpy()
    similar = np.minimum.reduceat(kept[links.linked], links.start) if len(kept) else kept
    dropped: NDArray[np.bool_] = np.where(links.node[later] == earlier, similar[earlier], kept[earlier]) < later
    return dropped


def log_duplicates(pairs: pd.DataFrame, rows: int) -> None:
    for kind, group in pairs.groupby("kind"):
        dropped = group.loc[group["drop"], "later"].nunique()
        log.info("%s: %s pairs, %s rows dropped", kind, f"{len(group):,}", f"{dropped:,}")
    dropped = pairs.loc[pairs["drop"], "later"].nunique()
    log.info("%s of %s rows are dropped", f"{dropped:,}", f"{rows:,}")


if __name__ == "__main__":
    run(dedup, Params)
