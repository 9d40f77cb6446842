"""How many rows each group of candidates gives, and the ranks of the rows in their group.

The groups are the cells, the sources or the whole corpus, as the arm's `allocation` says. Shares are exact fractions,
because 0.29 of 100 is 29 rows, but int(0.29 * 100) is 28.
"""

from fractions import Fraction
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.selection.candidates import CELL

Allocation = Literal["exact", "source", "whole", "koquality"]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]
GROUPS: dict[str, list[str]] = {"exact": CELL, "koquality": CELL, "source": ["source"], "whole": []}
"""The columns whose values make the groups of an allocation."""


def number_groups(rows: pd.DataFrame, allocation: Allocation) -> Counts:
    """Return the number of each row's group [N], in the order of the groups' names."""
    columns = GROUPS[allocation]
    return rows.groupby(columns).ngroup().to_numpy() if columns else np.zeros(len(rows), dtype=np.int64)


def rank_in_group(rows: pd.DataFrame, by: str, allocation: Allocation = "exact") -> pd.Series:
    """Return the rank of each row in its group, from 0, in order of (the score `by`, order of raw)."""
    group = pd.Series(number_groups(rows, allocation), index=rows.index)
    return rows[[by]].sort_values(by, kind="stable").groupby(group).cumcount()


def exact_fraction(fraction: float) -> Fraction:
    """Return the decimal number as params.yaml has it."""
    return Fraction(str(fraction))


def arm_size(candidates: int, share: Fraction) -> int:
    return int(share * candidates)


def quotas(sizes: Counts, share: Fraction) -> Counts:
    """Return the quota of each group: floor(share x size), and one row more for the largest remainders.

    Ties go to the first group. The quotas add up to `arm_size` of all candidates.
    """
    exact = [share * int(size) for size in sizes]
    floors = [int(value) for value in exact]
    missing = arm_size(int(sizes.sum()), share) - sum(floors)
    by_remainder = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    for i in by_remainder[:missing]:
        floors[i] += 1
    return np.array(floors, dtype=np.int64)


def lowest(keys: NDArray[np.float64], count: int) -> Mask:
    """Return where the `count` lowest finite keys are; of equal keys, the first in the order of raw."""
    selected = np.zeros(len(keys), dtype=bool)
    selected[np.argsort(keys, kind="stable")[:count]] = True
    return selected & np.isfinite(keys)


def lowest_of_each(keys: NDArray[np.float64], group: Counts, quota: Counts) -> Mask:
    """Return where the lowest finite keys of each group are, as many as its quota."""
    selected = np.zeros(len(keys), dtype=bool)
    for number, count in enumerate(quota):
        members = np.flatnonzero(group == number)
        selected[members] = lowest(keys[members], count)
    return selected
