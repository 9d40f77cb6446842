"""Rows that a reviewer took out by hand: data/reviews.jsonl, in git, one JSON object per line.

    {"id": "9a8b...", "text_hash": "51ce...", "verdict": "out", "who": "Kim", "why": "names a private person"}

A line takes out every row with the same question and answer, from any source and in any later run. They are compared
without spaces, punctuation, case and width. `text_hash` finds them even if the row with this `id`, which depends on the
source, is no longer there. Another answer to the same question is another row.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import pyarrow as pa
from pydantic import Field, ValidationError, model_validator

from stages.lib.core.errors import UserError
from stages.lib.core.params import Section, describe
from stages.lib.text.conversations import whole_texts
from stages.lib.text.hashing import text_hash
from stages.lib.text.korean import same_text

READ = ("id", "instruction", "output", "turns")
"""The columns of raw that a review is compared with."""
Words = Annotated[str, Field(pattern=r"\S")]


class Review(Section):
    id: Words | None = None
    """The id of the row that was reviewed."""
    text_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """Of the row's texts, as `review_hashes` computes it. `python -m tools.review` writes both."""
    verdict: Literal["out"]
    who: Words
    why: Words

    @model_validator(mode="after")
    def names_a_row(self) -> "Review":
        if self.id is None and self.text_hash is None:
            raise ValueError("needs an id or a text_hash")
        return self


def read_reviews(path: Path) -> list[Review]:
    """Return the reviews. Raises UserError, which names the line, if one is not a review.

    Two lines about one row are no error: two people may have taken it out, each on a branch of their own.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; `git checkout {path}`, or create it empty")
    lines = enumerate(path.read_bytes().split(b"\n"), 1)
    return [read_review(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def read_review(line: bytes, where: str) -> Review:
    try:
        return Review.model_validate(json.loads(line))
    except ValidationError as error:
        listed = "; ".join(describe(item) for item in error.errors())
        raise UserError(f"{where}: {listed}; `python -m tools.review` writes such lines") from None
    except ValueError as error:
        raise UserError(
            f"{where}: not JSON: {error}; got {line.decode(errors='replace')[:80]!r}; correct or delete the line"
        ) from None


def review_hashes(rows: pa.Table) -> list[str]:
    """Return a hash of the texts of each row [N], equal for rows that differ only in source or in punctuation."""
    return [text_hash(*map(same_text, texts)) for texts in zip(*whole_texts(rows), strict=True)]


def match_reviews(reviews: list[Review], rows: pa.Table) -> tuple[pd.Series, list[Review]]:
    """Return whether each row [N] is reviewed out, and the reviews that no row matches.

    `rows` has the columns `READ`.
    """
    ids = rows["id"].to_pandas()
    if not reviews:
        return pd.Series(False, index=ids.index), []
    hashes = pd.Series(review_hashes(rows), index=ids.index, dtype=object)
    by_id = ids.isin([review.id for review in reviews])
    is_out = hashes.isin([*hashes[by_id], *(review.text_hash for review in reviews)])
    known = {*ids[by_id], *hashes[is_out]}
    return is_out, [review for review in reviews if known.isdisjoint({review.id, review.text_hash})]
