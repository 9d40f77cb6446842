"""Which rows an arm takes.

A cell is one cluster of one length group; q is a cell's quota, n its candidates, sorted by (perplexity, raw order).

- `spread` takes places floor((2j+1)n / 2q), j = 0..q-1: evenly over the perplexities of every cell (KoQuality's `ppl`).
- `highest` takes the last q (KoQuality's `ppl_h`), `middle` places floor((n-q)/2) + j (Marion et al. 2023,
  arXiv 2309.04564).
- `steady` covers like `spread` and stays when rows are added: strata are cells x BINS bins of the relative rank in the
  cell, and the lowest keys are taken, where a candidate's key is (its place by hash in the stratum + the stratum's
  fixed fraction of 1) / the stratum's size (permanent random numbers: Ohlsson 1995, Coordination of samples using
  permanent random numbers). The fractions of a cell's strata are 1 / BINS apart.
- `random` takes the lowest hashes, `longest` the most characters of the output (Zhao et al. 2024, arXiv 2402.04833),
  `all` every candidate. These know no cells.

Allocation `exact` gives every arm of a fraction the same number of rows; `koquality` picks as the original does
(nayohan/KoQuality, proceed_sampling_dataset.py), for parity.
"""

from collections.abc import Collection
from decimal import Decimal
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.text.hashing import dice

Method = Literal["spread", "highest", "middle", "steady", "random", "longest", "all"]
Allocation = Literal["exact", "koquality"]
DRAWN = ("random", "steady")
"""Methods whose rows the seed draws; in the others it trains alone."""
Mask = NDArray[np.bool_]
CELL = ["length_group", "cluster"]
BINS = 3
"""Bins of perplexity rank in a cell of `steady`."""


def pool(
    corpus: pd.DataFrame, ppl: pd.Series, cells: pd.DataFrame, leaked: Collection[str] = (), repeated: bool = False
) -> pd.DataFrame:
    """Return every row of raw with its cell, its score, its rank in the cell and why it is no candidate, or null.

    A candidate has a perplexity, is none of the `leaked` ids and is the first such row of its instruction; with
    `repeated` the others count too. Rank is the place among the cell's candidates by (perplexity, raw order), from 0.
    """
    rows = cells[["id", *CELL]].assign(
        instruction=corpus["instruction"],
        characters=corpus["output"].str.len(),
        score=ppl,
        reason=pd.Series(None, index=cells.index, dtype=object),
    )
    rows.loc[ppl.isna(), "reason"] = "no perplexity"
    rows.loc[rows["id"].isin(list(leaked)), "reason"] = "leaked"
    if not repeated:
        usable = corpus["instruction"].where(rows["reason"].isna())
        rows.loc[usable.duplicated() & usable.notna(), "reason"] = "repeated instruction"
    candidates = rows[rows["reason"].isna()]
    rows["rank"] = candidates.sort_values("score", kind="stable").groupby(CELL).cumcount()
    return rows


def leaked_ids(leaks: pd.DataFrame) -> set[str]:
    """Return the ids of the rows that `decontaminate` leaves out."""
    return set(leaks.loc[leaks["drop"], "id"])


def select(rows: pd.DataFrame, method: Method, allocation: Allocation, fraction: float, seed: int) -> Mask:
    """Return which of the candidates are taken [N].

    `rows` are those rows of `pool` without a reason.
    """
    if allocation == "koquality":
        return original(rows, method, fraction)
    if method == "all":
        return np.ones(len(rows), dtype=bool)
    if method in ("spread", "highest", "middle"):
        return by_quota(rows, method, fraction)
    keys = {"steady": steady_keys, "random": random_keys, "longest": longest_keys}[method](rows, seed)
    return lowest(keys, total(len(rows), fraction))


def total(candidates: int, fraction: float) -> int:
    """Return floor(fraction x candidates), the fraction read as the decimal it is written as."""
    return int(Decimal(str(fraction)) * candidates)


def lowest(keys: NDArray[np.float64], count: int) -> Mask:
    """Return where the `count` lowest keys are; of equal keys the first in raw order."""
    taken = np.zeros(len(keys), dtype=bool)
    taken[np.argsort(keys, kind="stable")[:count]] = True
    return taken


def by_quota(rows: pd.DataFrame, method: Method, fraction: float) -> Mask:
    cell, sizes = cells_of(rows)
    rank, q, n = rows["rank"].to_numpy(dtype=np.int64), quotas(sizes, fraction)[cell], sizes[cell]
    if method == "spread":
        mask: Mask = places_up_to(rank, q, n) > places_up_to(rank - 1, q, n)
    else:
        start = n - q if method == "highest" else (n - q) // 2
        mask = (start <= rank) & (rank < start + q)
    return mask


def places_up_to(rank: NDArray[np.int64], q: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many j in 0..q-1 have floor((2j+1)n / 2q) <= rank, that is (2j+1)n < 2q (rank+1)."""
    count: NDArray[np.int64] = np.clip(-((n - 2 * q * (rank + 1)) // (2 * n)), 0, q)
    return count


def cells_of(rows: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every row's cell number [N], in (length group, cluster) order, and the cells' sizes."""
    cell = rows.groupby(CELL, sort=True).ngroup().to_numpy()
    return cell, np.bincount(cell)


def quotas(sizes: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return how many rows each cell gives: floors of fraction x size, then largest remainders, ties by cell order.

    The sum is `total` of all candidates.
    """
    exact = [Decimal(str(fraction)) * int(size) for size in sizes]
    floors = [int(value) for value in exact]
    missing = total(int(sizes.sum()), fraction) - sum(floors)
    by_remainder = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    for i in by_remainder[:missing]:
        floors[i] += 1
    return np.array(floors, dtype=np.int64)


def steady_keys(rows: pd.DataFrame, seed: int) -> NDArray[np.float64]:
    """Return every candidate's key [N]; a stratum's keys are evenly spaced, so the lowest take its share.

    The candidate of lowest hash fixes the fraction of its cell, whatever the cell's number; the bins of a cell are
    1 / BINS apart, so that the rows of a cell are rounded once and not BINS times.
    """
    cell, sizes = cells_of(rows)
    part = rows["rank"].to_numpy(dtype=np.int64) * BINS // sizes[cell]
    stratum = cell * BINS + part
    hashes = pd.Series(dice(list(rows["id"]), "steady", seed))
    first = rows["id"].to_numpy()[hashes.groupby(cell).idxmin()]
    fraction = (dice(list(first), "cell", seed)[cell] + part / BINS) % 1
    place = hashes.groupby(stratum).rank(method="first").to_numpy(dtype=np.float64) - 1
    keys: NDArray[np.float64] = (place + fraction) / np.bincount(stratum)[stratum]
    return keys


def random_keys(rows: pd.DataFrame, seed: int) -> NDArray[np.float64]:
    return dice(list(rows["id"]), "random", seed)


def longest_keys(rows: pd.DataFrame, _seed: int) -> NDArray[np.float64]:
    keys: NDArray[np.float64] = -rows["characters"].to_numpy(dtype=np.float64)
    return keys


def original(rows: pd.DataFrame, method: Method, fraction: float) -> Mask:
    """Pick as KoQuality does: perplexities of 2 decimals, ties by the instruction's characters, then raw order.

    `spread`: places 0, s, 2s, ... of each cell, s = int(1 / fraction), so every cell gives a row. `highest`:
    int(fraction x size) rows of each cell, the size taken before repeated instructions are left out.
    """
    order = rows.assign(score=rows["score"].round(2), length=rows["instruction"].str.len())
    order = order.sort_values(["score", "length"], kind="stable")
    taken = pd.Series(False, index=order.index)
    cells = order.groupby(CELL, sort=False)
    if method == "spread":
        taken = cells.cumcount() % int(1 / fraction) == 0
    else:
        quota = (fraction * cells["score"].transform("size")).astype(int)
        single = order[~order.duplicated([*CELL, "instruction"])]
        from_top = single.groupby(CELL, sort=False).cumcount(ascending=False)
        taken.loc[single.index] = from_top < quota.loc[single.index]
    mask: Mask = taken.reindex(rows.index).to_numpy(dtype=bool)
    return mask
