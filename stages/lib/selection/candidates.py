"""Which rows an arm may select, and how they rank in their cells.

A row is a candidate if it has a perplexity, contains no item of the benchmark (as found by `decontaminate`), does not
nearly equal a held-out or an earlier row, was not reviewed out and is the first such row with its instruction, in the
order of raw.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CELL = ["length_group", "cluster"]
NO_PPL, LEAKED, REPEATED, NEAR = "no perplexity", "leaked", "repeated instruction", "near held out"
DOUBLED, REVIEWED = "near duplicate", "reviewed out"


def reasons(
    instruction: pd.Series,
    ppl: pd.Series,
    leaked: pd.Series,
    near_held_out: pd.Series,
    doubled: pd.Series,
    reviewed: pd.Series,
) -> pd.Series:
    """Return why each row is not a candidate, or null if it is one.

    `reviewed out` comes before all other reasons, so that the reviewer sees it; then comes `leaked`.
    """
    reason = pd.Series(None, index=instruction.index, dtype=object)
    reason[doubled] = DOUBLED
    reason[near_held_out] = NEAR
    reason[ppl.isna()] = NO_PPL
    reason[leaked] = LEAKED
    reason[reviewed] = REVIEWED
    return mark_repeated(instruction, reason)


def mark_repeated(instruction: pd.Series, reason: pd.Series) -> pd.Series:
    """Return the reasons with repeats marked afresh: of usable rows that share an instruction, only the first is free.

    Works on any subset of the rows, where another row may be the first.
    """
    reason = allow_repeated(reason)
    usable = instruction.where(reason.isna())
    return reason.mask(usable.duplicated() & usable.notna(), REPEATED)


def allow_repeated(reason: pd.Series) -> pd.Series:
    """Return the reasons with repeats made candidates again."""
    return reason.mask(reason == REPEATED, None)


def is_dropped(ids: pd.Series, flags: pd.DataFrame) -> pd.Series:
    """Return whether a table of flags, with `id` and `drop`, drops each of these rows."""
    return ids.isin(flags.loc[flags["drop"], "id"])


def may_be_candidates(instruction: pd.Series, ids: pd.Series, *flags: pd.DataFrame) -> NDArray[np.bool_]:
    """Return whether each row [N] can become a candidate, before perplexities and held-out rows are known.

    `flags` are tables with `id` and `drop`: leaks, duplicates, reviews. Perplexity and nearness to held-out rows are
    the same for all rows with the same instruction, so they never make a later row a candidate.
    """
    reason = pd.Series(None, index=instruction.index, dtype=object)
    for table in flags:
        reason[is_dropped(ids, table)] = "dropped"
    return np.array(mark_repeated(instruction, reason).isna(), dtype=bool)


def unselectable(scores: pd.Series, lowest: float | None, highest: float | None) -> pd.Series:
    """Return why an arm cannot select the row with each score, or null if it can, as it can at the bounds."""
    reason = pd.Series(None, index=scores.index, dtype=object)
    if lowest is not None:
        reason[scores < lowest] = f"{scores.name} below {lowest:g}"
    if highest is not None:
        reason[scores > highest] = f"{scores.name} above {highest:g}"
    reason[scores.isna()] = f"no {scores.name}"
    return reason
