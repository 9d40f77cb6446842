"""Which rows of the candidates an arm takes.

A cell is one cluster of one length group. `spread` and `highest` take a quota from every cell, by perplexity
(KoQuality's `ppl` and `ppl_h`); `random` and `all` know no cells.
"""

from decimal import Decimal
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.hashes import dice

Method = Literal["spread", "highest", "random", "all"]
CELLS = ("spread", "highest")


def total(candidates: int, fraction: float) -> int:
    """Return floor(fraction x candidates), the fraction read as the decimal it is written as."""
    return int(Decimal(str(fraction)) * candidates)


def quotas(sizes: pd.Series, fraction: float) -> pd.Series:
    """Return how many rows each cell gives: floors of fraction x size, then largest remainders, ties by cell order.

    `sizes` is indexed by (length group, cluster), sorted; the sum is `total` of all candidates.
    """
    exact = [Decimal(str(fraction)) * int(size) for size in sizes]
    floors = [int(value) for value in exact]
    missing = total(int(sizes.sum()), fraction) - sum(floors)
    by_remainder = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    for i in by_remainder[:missing]:
        floors[i] += 1
    return pd.Series(floors, index=sizes.index)


def positions(method: Method, quota: int, size: int) -> NDArray[np.int64]:
    """Return which places of a cell's candidates, sorted by perplexity, are taken [quota]."""
    j = np.arange(quota)
    if method == "spread":
        return (2 * j + 1) * size // (2 * quota)
    return size - quota + j


def select(candidates: pd.DataFrame, method: Method, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which candidates are taken [N].

    `candidates` is in raw order with the columns id, length_group, cluster and rank (0 is the lowest perplexity of
    the cell).
    """
    taken = np.zeros(len(candidates), dtype=bool)
    if method == "all":
        taken[:] = True
    elif method == "random":
        order = np.argsort(dice(list(candidates["id"]), "random", seed), kind="stable")
        taken[order[: total(len(candidates), fraction)]] = True
    else:
        cells = candidates.groupby(["length_group", "cluster"], sort=True)
        sizes = cells.size()
        wanted = quotas(sizes, fraction)
        for cell, index in cells.indices.items():
            places = positions(method, int(wanted[cell]), int(sizes[cell]))
            taken[index[np.isin(candidates["rank"].to_numpy()[index], places)]] = True
    return taken
