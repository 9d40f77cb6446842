"""Which rows an arm may take, and how they rank.

A candidate has a perplexity, contains no item of the benchmark (as `decontaminate` sees it) and is the first such row
of its instruction, in the order of raw.
"""

import pandas as pd

CELL = ["length_group", "cluster"]
NO_PPL, LEAKED, REPEATED = "no perplexity", "leaked", "repeated instruction"


def reasons(instruction: pd.Series, ppl: pd.Series, leaked: pd.Series) -> pd.Series:
    """Return why each row is no candidate, or null if it is one."""
    reason = pd.Series(None, index=instruction.index, dtype=object)
    reason[ppl.isna()] = NO_PPL
    reason[leaked] = LEAKED
    return mark_repeated(instruction, reason)


def mark_repeated(instruction: pd.Series, reason: pd.Series) -> pd.Series:
    """Return the reasons anew for these rows: of the rows that share an instruction, only the first may be taken."""
    reason = allow_repeated(reason)
    usable = instruction.where(reason.isna())
    return reason.mask(usable.duplicated() & usable.notna(), REPEATED)


def allow_repeated(reason: pd.Series) -> pd.Series:
    return reason.mask(reason == REPEATED, None)


def rank_in_cell(candidates: pd.DataFrame, by: str) -> pd.Series:
    """Return each candidate's place in its cell by (score, raw order), from 0."""
    return candidates.sort_values(by, kind="stable").groupby(CELL).cumcount()
