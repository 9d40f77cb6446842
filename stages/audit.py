"""Describe the near-duplicates, the marks and the reviews. `report` reads nothing else about them.

data/raw.parquet, data/candidates.parquet, data/duplicates.parquet, data/ratings.parquet, data/reviews.jsonl
    -> data/audit.json
"""

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.core.artifacts import read_arrow, read_table, require_same_rows, write_json
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.rating.request import Ask, PricePerMillion
from stages.lib.selection.reviews import Review, match_reviews, read_reviews
from stages.lib.statistics.agreement import icc, kept_overlap, weighted_kappa

log = logging.getLogger("stages")
BAND = 0.05
"""Width of a band of similarity."""
EXAMPLES, SHOWN = 3, 200
"""Pairs shown from each band, reviews without a row, and characters of each text."""
STEP = 0.5
"""Width of a bar of the histogram of marks."""
SCORES = ("score", "ifd", "nll_answer")
SATURATED, CLIFF = 0.5, 0.5
"""Shares of the rated rows above which a warning is due: with one mark, and between two neighbouring marks."""
LARGE = 0.5
"""A correlation from which Cohen (1988, chapter 3) calls the effect large."""
FEW = 10
"""A source with fewer candidates than this says nothing about a correlation."""


class AnySize(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    method: str
    by: str | None = None
    min: float | None = None


class AnyArm(AnySize):
    size: AnySize | None = None


class Params(Section):
    arms: dict[str, AnyArm]
    ask: Ask
    """Where `python -m tools.ask` asks a judge, and what it costs there."""


def audit(
    params: Params, raw: Path, candidates: Path, duplicates: Path, ratings: Path, reviews: Path, audit: Path
) -> None:
    rows, texts = read_table(candidates), read_arrow(raw, "id", "instruction", "output", "turns")
    corpus = texts.drop_columns("turns").to_pandas()
    pairs, marks = read_table(duplicates), read_table(ratings)
    require_same_rows(raw=corpus["id"], candidates=rows["id"], ratings=marks["id"])
    rows, thresholds = rows.assign(**marks[["kind", "score_again"]]), thresholds_of(params.arms)
    verdicts = read_reviews(reviews)
    is_out, lost = match_reviews(verdicts, texts)
    found = {
        "near_duplicates": describe_pairs(pairs, rows.set_index("id")["source"], corpus.set_index("id")),
        "ratings": describe_marks(rows, thresholds) | payment(marks, params.ask.price_per_million),
        "reviews": {
            "lines": len(verdicts),
            "lines_without_row": len(lost),
            "rows_out": int(is_out.sum()),
            "lost": [review.model_dump(exclude_none=True) for review in lost],
        },
    }
    write_json(audit, found)
    log.info("reviews: %(lines)d, rows that they take out: %(rows_out)d", found["reviews"])
    for line in [*pair_lines(found["near_duplicates"]), *mark_lines(found["ratings"])]:
        log.info("%s", line)
    usable = rows[rows["reason"].isna()]
    marked = usable["score"].dropna()
    for line in [*saturation_lines(marked, thresholds), *bias_lines(found["ratings"]), *lost_lines(lost)]:
        log.warning("%s", line)


def thresholds_of(arms: dict[str, AnyArm]) -> list[float]:
    """Return the lowest mark that each `threshold` keeps, be it an arm or the size of one."""
    settings = [one for arm in arms.values() for one in (arm, arm.size) if one]
    return sorted(
        {one.min for one in settings if one.method == "threshold" and one.by == "score" and one.min is not None}
    )


def describe_pairs(pairs: pd.DataFrame, source: pd.Series, texts: pd.DataFrame) -> dict[str, Any]:
    """Return the near-duplicates by kind: pairs and dropped rows, by the source of the later row, and by similarity.

    `source` and `texts` are indexed by id.
    """
    pairs = pairs.assign(
        source=pairs["id"].map(source), band=np.floor(pairs["similarity"] / BAND + 1e-9).astype(int) * BAND
    )
    return {
        kind: count_pairs(found)
        | {
            "by_source": {name: count_pairs(rows) for name, rows in found.groupby("source")},
            "by_similarity": {f"{band:.2f}": len(rows) for band, rows in found.groupby("band")},
            "examples": [
                {
                    "similarity": pair.similarity,
                    "first": beginning_of(texts, pair.of),
                    "later": beginning_of(texts, pair.id),
                }
                for _, rows in found.groupby("band")
                for pair in rows.head(EXAMPLES).itertuples()
            ],
        }
        for kind, found in pairs.groupby("kind")
    }


def count_pairs(pairs: pd.DataFrame) -> dict[str, int]:
    return {"pairs": len(pairs), "rows_dropped": int(pairs.loc[pairs["drop"], "id"].nunique())}


def beginning_of(texts: pd.DataFrame, row: str) -> str:
    return "\n".join(texts.loc[row])[:SHOWN]


def describe_marks(rows: pd.DataFrame, thresholds: list[float]) -> dict[str, Any]:
    """Return what the judge gave, each section only if there is something to say."""
    usable = rows[rows["reason"].isna()]
    marks = usable["score"].dropna()
    found = {
        "kinds": {
            name: {str(kind): int(n) for kind, n in group["kind"].value_counts().items()}
            for name, group in with_all(rows[rows["kind"].notna()])
        },
        "histogram": {
            f"{bar * STEP:g}": int(n) for bar, n in np.round(marks / STEP).astype(int).value_counts().items()
        },
        "kept": {
            f"{least:g}": {name: float((group["score"] >= least).mean()) for name, group in with_all(usable)}
            for least in (thresholds if len(marks) else [])
        },
        "agreement": agreement(rows, thresholds),
        "length": {name: rho for name in SCORES if (rho := length_correlation(usable, name))},
    }
    return {name: section for name, section in found.items() if section}


def with_all(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each source, and all of them; nothing if there are none."""
    if len(rows):
        yield from rows.groupby("source")
        yield "all", rows


def agreement(rows: pd.DataFrame, thresholds: list[float]) -> dict[str, Any]:
    """Return how far the judge agrees with itself, over the rows that it marked twice."""
    twice = rows.dropna(subset=["score", "score_again"])
    first, again = (twice[name].to_numpy(dtype=float) for name in ("score", "score_again"))
    if not len(twice):
        return {}
    found = {
        "rows": len(twice),
        "exact": float((first == again).mean()),
        "weighted_kappa": weighted_kappa(first, again),
        "icc": icc(first, again),
        "kept": {f"{least:g}": overlap for least in thresholds if (overlap := kept_overlap(first, again, least))},
    }
    return {name: value for name, value in found.items() if value is not None}


def length_correlation(rows: pd.DataFrame, score: str) -> dict[str, float]:
    """Return Spearman's correlation of a score with the characters of the answer: for each source that has one, and
    their mean, weighted by rows."""
    groups = {name: group.dropna(subset=[score]) for name, group in rows.groupby("source")}
    groups = {name: group for name, group in groups.items() if len(group) >= FEW and varies(group, score)}
    found = {name: float(group[score].corr(group["characters"], method="spearman")) for name, group in groups.items()}
    if not found:
        return {}
    return found | {"all": float(np.average(list(found.values()), weights=[len(groups[name]) for name in found]))}


def varies(rows: pd.DataFrame, score: str) -> bool:
    return bool((rows[[score, "characters"]].nunique() > 1).all())


def payment(marks: pd.DataFrame, price: PricePerMillion) -> dict[str, Any]:
    """Return the tokens of the prompts and replies and their cost at this price; empty if nothing was paid."""
    prompts, replies = (int(marks[name].sum()) for name in ("prompt_tokens", "reply_tokens"))
    if not prompts:
        return {}
    paid = {"prompt_tokens": prompts, "reply_tokens": replies, price.currency: price.cost(prompts, replies)}
    return {"paid": paid}


def pair_lines(found: dict[str, Any]) -> Iterator[str]:
    for kind, counts in found.items():
        yield f"near-duplicates, {kind}: {counts['pairs']:,} pairs; {counts['rows_dropped']:,} rows are dropped"


def mark_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what the judge gave, how far it agrees with itself, and what it cost."""
    if "kinds" in found:
        kinds = found["kinds"]["all"]
        yield "replies: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
    for least, shares in found.get("kept", {}).items():
        by_source = ", ".join(f"{name} {100 * share:.3g} %" for name, share in shares.items())
        yield f"candidates with a mark of at least {least}: {by_source}"
    if twice := found.get("agreement"):
        measures = [f"{name} {twice[name]:.2f}" for name in ("exact", "weighted_kappa", "icc") if name in twice]
        yield f"{twice['rows']:,} rows were marked twice: {', '.join(measures).replace('_', ' ')}"
        for least, overlap in twice["kept"].items():
            shares = "{est:.2f} [{lo:.2f}, {hi:.2f}]".format(**overlap)
            yield f"of the rows with a mark of at least {least} either time, {shares} have one both times"
    if "paid" in found:
        *tokens, (currency, price) = found["paid"].items()
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in tokens)
        yield f"replies cost {price:,.2f} {currency} at the price in params: {counts}"


def saturation_lines(marks: pd.Series, thresholds: list[float]) -> Iterator[str]:
    """Yield a warning if most rows have one mark, or if a threshold's neighbour would keep far more or fewer rows."""
    shares = marks.value_counts(normalize=True).sort_index()
    for mark, share in shares[shares > SATURATED].items():
        yield f"{100 * share:.3g} % of the rows have the mark {mark:g}: this judge hardly tells rows apart"
    kept = shares[::-1].cumsum()[::-1]
    for least in thresholds if len(shares) else []:
        around = pd.concat([kept[kept.index < least][-1:], kept[kept.index >= least][:2]])
        for (low, more), (high, fewer) in pairwise(around.items()):
            if more - fewer > CLIFF:
                yield (
                    f"the threshold {least:g} stands on a cliff: {100 * more:.3g} % of the rows have at least "
                    f"{low:g}, {100 * fewer:.3g} % at least {high:g}"
                )


def bias_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield a warning for each score that follows the answer's length."""
    for score, by_source in found.get("length", {}).items():
        if abs(by_source["all"]) >= LARGE:
            kind = "long" if by_source["all"] > 0 else "short"
            yield (
                f"{score} follows the length of the answer (Spearman {by_source['all']:+.2f} within sources; {LARGE} "
                f"is large): high values mean {kind} answers, so compare with the arm `longest`"
            )


def lost_lines(lost: list[Review]) -> Iterator[str]:
    """Yield a warning about the reviews whose rows are gone: from the sources, or because their texts were changed."""
    if lost:
        named = ", ".join(f"{review.id or review.text_hash} ({review.why})" for review in lost[:EXAMPLES])
        yield (
            f"reviews that no longer match a row: {len(lost)}, such as {named}; if a row was changed, review it again; "
            "if it may come back, keep the line"
        )


if __name__ == "__main__":
    run(audit, Params)
