"""Take rows out of every arm, for good: `python -m tools.review ID [ID ...] --reason TEXT`.

Adds a line for each row to data/reviews.jsonl, with your name from git. The rows must be in
data/raw.parquet. From the next `dvc repro` on, no arm has them, whatever source their texts come from.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stages.lib.core.artifacts import atomic, read_arrow
from stages.lib.core.errors import UserError
from stages.lib.selection.reviews import READ, Review, read_reviews, review_hashes
from tools.output import print_lines
from tools.why import title

RAW, REVIEWS = Path("data/raw.parquet"), Path("data/reviews.jsonl")
SHOWN = 5
"""At most this many rows with the same question are named."""


def add_reviews(ids: list[str], reason: str) -> Iterator[str]:
    """Add a review for each of these rows; yield what was taken out and what stays in."""
    earlier, who, corpus = read_reviews(REVIEWS), name_of_reviewer(), read_corpus()
    rows = rows_with(corpus, "id", ids)
    require_rows(ids, rows)
    found = dict(zip(review_hashes(rows), rows["id"].to_pylist(), strict=True))
    known = {name: review.who for review in earlier for name in (review.id, review.text_hash)}
    done = {row: known.get(text) or known.get(row) for text, row in found.items()}
    new = [
        Review(id=row, text_hash=text, verdict="out", who=who, why=reason)
        for text, row in found.items()
        if not done[row]
    ]
    append_reviews(new)
    yield from (f"{row}: {name} already took out these texts" for row, name in done.items() if name)
    for row in rows.to_pylist():
        yield f"out: {title(row)}"
    yield from same_question(corpus, rows)
    yield f"{len(new)} lines added to {REVIEWS}; next: `dvc repro --pull --allow-missing`, then commit"


def name_of_reviewer() -> str:
    """Return git's user.name. Raises UserError if there is none."""
    name = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False).stdout.strip()
    if not name:
        raise UserError("git has no name for you, and a review needs one; run `git config user.name NAME`")
    return name


def read_corpus() -> pa.Table:
    if not RAW.is_file():
        raise UserError(f"{RAW}: missing; run `dvc pull {RAW}`")
    return read_arrow(RAW, "source", *READ)


def rows_with(corpus: pa.Table, column: str, values: list[str]) -> pa.Table:
    return corpus.filter(pc.is_in(corpus[column], pa.array(values, pa.string())))


def require_rows(ids: list[str], rows: pa.Table) -> None:
    """Raise UserError if no row has one of the ids."""
    if unknown := sorted(set(ids) - set(rows["id"].to_pylist())):
        raise UserError(
            f"{RAW} has no row {', '.join(unknown)}, and nothing was added; `python -m tools.why TEXT` finds an id "
            "by a piece of the row's text, and says if the row is held out or dropped, and so in no arm"
        )


def append_reviews(reviews: list[Review]) -> None:
    """Add the lines at the end of the file, and leave the others as they are."""
    before = REVIEWS.read_text(encoding="utf-8")
    lines = [json.dumps(review.model_dump(), ensure_ascii=False) + "\n" for review in reviews]
    with atomic(REVIEWS) as scratch:
        scratch.write_text(before + "\n" * (before[-1:] not in ("", "\n")) + "".join(lines), encoding="utf-8")


def same_question(corpus: pa.Table, rows: pa.Table) -> Iterator[str]:
    """Yield the rows with other answers to the same questions, because one of them may take a row's place."""
    asked = rows_with(corpus, "instruction", rows["instruction"].to_pylist())
    out = set(review_hashes(rows))
    others = [row for row, text in zip(asked["id"].to_pylist(), review_hashes(asked), strict=True) if text not in out]
    if others:
        named = " ".join(others[:SHOWN]) + (" ..." if len(others) > SHOWN else "")
        yield f"{len(others)} rows have other answers to these questions, and stay: {named}; review them too if needed"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.review", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("ids", nargs="+", metavar="ID", help="of a row in data/raw.parquet")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why the row is taken out")
    options = parser.parse_args(words)
    if not options.reason.strip():
        parser.error("--reason needs a text")
    return print_lines(add_reviews(options.ids, options.reason))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
