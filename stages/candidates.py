"""Collect the cells and the scores of each row in one table, with the reason if it is not a candidate.

    data/raw.parquet, data/ppl.parquet, data/clusters.parquet, data/leaks.parquet, data/duplicates.parquet,
    data/ratings.parquet, data/held_out.jsonl, data/reviews.jsonl
        -> data/candidates.parquet

Each score is a column of the table, and an arm can select `by:` any of them.
"""

import logging
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa

from stages.lib.core.artifacts import read_arrow, read_jsonl, read_table, require_same_rows, write_table
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.selection.candidates import is_dropped, reasons
from stages.lib.selection.partitions import count_partitions, with_partitions
from stages.lib.selection.reviews import match_reviews, read_reviews
from stages.lib.text.overlap import without_particles

log = logging.getLogger("stages")
CANDIDATES = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("length_group", pa.int32()),
        ("cluster", pa.int32()),
        ("distance", pa.float64()),
        ("tokens", pa.int64()),
        ("nll", pa.float64()),
        ("ppl", pa.float64()),
        ("nll_answer", pa.float64()),
        ("nll_answer_alone", pa.float64()),
        ("ifd", pa.float64()),
        ("score", pa.float64()),
        ("characters", pa.int64()),
        ("reason", pa.string()),
    ]
)
"""Row i is row i of raw. `distance` is the distance to the centroid of the cell; other partitions have columns of
their own (see `selection.partitions`). `tokens` counts the predicted tokens of the instruction, `characters` the
characters of the output. `reason` says why the row is not a candidate; it is null if the row is one."""


TEXT = ("id", "source", "instruction", "output", "turns")
SCORES = ("id", "tokens", "nll", "ppl")
MARKS = ("nll_answer", "nll_answer_alone", "ifd", "score")


class Params(Section):
    pass


def candidates(
    _params: Params,
    raw: Path,
    ppl: Path,
    clusters: Path,
    leaks: Path,
    duplicates: Path,
    ratings: Path,
    held_out: Path,
    reviews: Path,
    candidates: Path,
) -> None:
    texts, scores, cells = read_arrow(raw, *TEXT), read_table(ppl, *SCORES), read_table(clusters)
    reviewed, _ = match_reviews(read_reviews(reviews), texts)
    corpus = texts.drop_columns("turns").to_pandas()
    marks = read_table(ratings, "id", *MARKS)
    require_same_rows(raw=corpus["id"], ppl=scores["id"], clusters=cells["id"], ratings=marks["id"])
    leaked, doubled = (is_dropped(corpus["id"], read_table(path, "id", "drop")) for path in (leaks, duplicates))
    near = nearly_equal(corpus["instruction"], [row["instruction"] for row in read_jsonl(held_out)])
    reason = reasons(corpus["instruction"], scores["ppl"], leaked, near, doubled, reviewed)
    rows = cells.assign(
        source=corpus["source"],
        characters=corpus["output"].str.len(),
        reason=reason,
        **scores[["tokens", "nll", "ppl"]],
        **marks[list(MARKS)],
    )
    write_table(candidates, rows, with_partitions(CANDIDATES, count_partitions(cells)))
    others = dict(sorted(Counter(reason.dropna()).items()))
    log.info("%s of %s rows are candidates; others: %s", f"{reason.isna().sum():,}", f"{len(rows):,}", others or "none")


def nearly_equal(instructions: pd.Series, held_out: list[str]) -> pd.Series:
    """Return whether each instruction differs from a held-out one only in punctuation, spaces, case and particles.

    Trained on such a row, a model would know the answer that held-out loss asks for.
    """
    return instructions.map(without_particles).isin({without_particles(text) for text in held_out})


if __name__ == "__main__":
    run(candidates, Params)
