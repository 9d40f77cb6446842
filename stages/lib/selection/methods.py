"""How an arm selects its rows. Each method is one entry of METHODS.

A cell is one cluster of one length group. q is the quota of a cell and n the number of its candidates, which are sorted
by (score, order of raw). The score is the perplexity unless the arm names another (`by`).

- `spread` takes ranks floor((2j+1)n / 2q), j = 0..q-1: evenly over the scores of each cell (KoQuality's `ppl`).
- `highest` takes the last q ranks (KoQuality's `ppl_h`).
- `middle` takes ranks floor((n-q)/2) + j (Marion et al. 2023, arXiv 2309.04564).
- `steady` covers the scores like `spread`, but keeps most of its rows when rows are added. It divides each cell into
  BINS bins by relative rank; a bin of a cell is a stratum. The key of a candidate is (its rank by hash in the stratum +
  the stratum's fixed fraction of 1) / size of the stratum, and the lowest keys are selected (permanent random numbers:
  Ohlsson 1995, Coordination of samples using permanent random numbers).
- `random` takes the rows with the lowest hashes.
- `longest` takes the rows with the most characters of output (Zhao et al. 2024, arXiv 2402.04833).
- `all` takes every candidate.

The last three use no cells. Allocation `exact` gives all arms of one fraction the same number of rows. Allocation
`koquality` selects what the original does (nayohan/KoQuality, proceed_sampling_dataset.py), for parity.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator

from stages.lib.selection.candidates import CELL
from stages.lib.text.hashing import uniform_hash

Allocation = Literal["exact", "koquality"]
Mask = NDArray[np.bool_]
Keys = NDArray[np.float64]
BINS = 3
"""Bins per cell, by relative rank, in `steady`."""


def select(candidates: pd.DataFrame, method: str, allocation: Allocation, fraction: float, seed: int) -> Mask:
    """Return which of the candidates are selected [N].

    `candidates` has the columns `id`, `length_group`, `cluster`, `characters`, `score` and `rank`; allocation
    `koquality` also needs `instruction`.
    """
    if allocation == "koquality":
        return select_as_koquality(candidates, method, fraction)
    return lowest(METHODS[method].keys(candidates, fraction, seed), arm_size(len(candidates), fraction))


def arm_size(candidates: int, fraction: float) -> int:
    """Return floor(fraction x candidates) in decimal arithmetic: 0.29 of 100 is 29, but int(0.29 * 100) is 28."""
    return int(Decimal(str(fraction)) * candidates)


def lowest(keys: NDArray[np.float64], count: int) -> Mask:
    """Return where the `count` lowest keys are; of equal keys, the first in the order of raw."""
    selected = np.zeros(len(keys), dtype=bool)
    selected[np.argsort(keys, kind="stable")[:count]] = True
    return selected


def spread_keys(rows: pd.DataFrame, fraction: float, _seed: int) -> Keys:
    rank, q, n = ranks_and_quotas(rows, fraction)
    return selected_first(ranks_up_to(rank, q, n) > ranks_up_to(rank - 1, q, n))


def highest_keys(rows: pd.DataFrame, fraction: float, _seed: int) -> Keys:
    rank, q, n = ranks_and_quotas(rows, fraction)
    return selected_first(rank >= n - q)


def middle_keys(rows: pd.DataFrame, fraction: float, _seed: int) -> Keys:
    rank, q, n = ranks_and_quotas(rows, fraction)
    start = (n - q) // 2
    return selected_first((start <= rank) & (rank < start + q))


def selected_first(selected: Mask) -> Keys:
    """Return keys that are lowest for these rows: the quotas add up to `arm_size`, so exactly these are selected."""
    return np.where(selected, 0.0, 1.0)


def ranks_and_quotas(rows: pd.DataFrame, fraction: float) -> tuple[NDArray[np.int64], ...]:
    """Return the rank of each candidate, the quota of its cell and the size of its cell, each [N]."""
    cell, sizes = number_cells(rows)
    return rows["rank"].to_numpy(dtype=np.int64), quotas(sizes, fraction)[cell], sizes[cell]


def ranks_up_to(rank: NDArray[np.int64], q: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many j in 0..q-1 have floor((2j+1)n / 2q) <= rank, which means (2j+1)n < 2q (rank+1)."""
    count: NDArray[np.int64] = np.clip(-((n - 2 * q * (rank + 1)) // (2 * n)), 0, q)
    return count


def number_cells(rows: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of each row's cell [N], in order of (length group, cluster), and the sizes of the cells."""
    cell = rows.groupby(CELL, sort=True).ngroup().to_numpy()
    return cell, np.bincount(cell)


def quotas(sizes: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return the quota of each cell: floor(fraction x size), and one row more for the largest remainders.

    Ties go to the first cell. The quotas add up to `arm_size` of all candidates.
    """
    exact = [Decimal(str(fraction)) * int(size) for size in sizes]
    floors = [int(value) for value in exact]
    missing = arm_size(int(sizes.sum()), fraction) - sum(floors)
    by_remainder = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    for i in by_remainder[:missing]:
        floors[i] += 1
    return np.array(floors, dtype=np.int64)


def steady_keys(rows: pd.DataFrame, _fraction: float, seed: int) -> Keys:
    """Return the key of each candidate [N]. The keys of a stratum are evenly spaced, so each stratum gives its share.

    The fixed fraction of a cell comes from its candidate with the lowest hash, so the number of the cell does not
    matter. The fractions of its strata are 1 / BINS apart, so that the rows of a cell are rounded once, not BINS times.
    """
    cell, sizes = number_cells(rows)
    bin_number = rows["rank"].to_numpy(dtype=np.int64) * BINS // sizes[cell]
    stratum = cell * BINS + bin_number
    hashes = pd.Series(uniform_hash(list(rows["id"]), "steady", seed))
    first_id = rows["id"].to_numpy()[hashes.groupby(cell).idxmin()]
    fraction = (uniform_hash(list(first_id), "cell", seed)[cell] + bin_number / BINS) % 1
    rank = hashes.groupby(stratum).rank(method="first").to_numpy(dtype=np.float64) - 1
    keys: Keys = (rank + fraction) / np.bincount(stratum)[stratum]
    return keys


def random_keys(rows: pd.DataFrame, _fraction: float, seed: int) -> Keys:
    return uniform_hash(list(rows["id"]), "random", seed)


def longest_keys(rows: pd.DataFrame, _fraction: float, _seed: int) -> Keys:
    keys: Keys = -rows["characters"].to_numpy(dtype=np.float64)
    return keys


def equal_keys(rows: pd.DataFrame, _fraction: float, _seed: int) -> Keys:
    return np.zeros(len(rows))


class Method(NamedTuple):
    keys: Callable[[pd.DataFrame, float, int], Keys]
    """Maps (candidates, fraction, seed) to a key for each candidate [N]; the lowest keys are selected."""
    uses_cells: bool
    """Whether it selects by perplexity and cell, so that the cost of scoring and embedding is part of its cost."""
    draws_rows: bool
    """Whether another seed selects other rows; otherwise the seed affects only training."""


METHODS = {
    "spread": Method(spread_keys, uses_cells=True, draws_rows=False),
    "highest": Method(highest_keys, uses_cells=True, draws_rows=False),
    "middle": Method(middle_keys, uses_cells=True, draws_rows=False),
    "steady": Method(steady_keys, uses_cells=True, draws_rows=True),
    "random": Method(random_keys, uses_cells=False, draws_rows=True),
    "longest": Method(longest_keys, uses_cells=False, draws_rows=False),
    "all": Method(equal_keys, uses_cells=False, draws_rows=False),
}


def check_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"unknown method; known methods: {', '.join(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(check_method)]


def select_as_koquality(rows: pd.DataFrame, method: str, fraction: float) -> Mask:
    """Return what KoQuality selects [N].

    Its perplexities have 2 decimals; ties are broken by the characters of the instruction, then by the order of raw.
    `spread` takes ranks 0, s, 2s, ... of each cell with s = int(1 / fraction), so each cell gives at least one row.
    `highest` takes the last int(fraction x size) distinct instructions of each cell, where the size counts repeats.
    """
    order = rows.assign(score=rows["score"].round(2), length=rows["instruction"].str.len())
    order = order.sort_values(["score", "length"], kind="stable")
    selected = pd.Series(False, index=order.index)
    cells = order.groupby(CELL, sort=False)
    if method == "spread":
        selected = cells.cumcount() % int(1 / fraction) == 0
    else:
        quota = (fraction * cells["score"].transform("size")).astype(int)
        single = order[~order.duplicated([*CELL, "instruction"])]
        from_top = single.groupby(CELL, sort=False).cumcount(ascending=False)
        selected.loc[single.index] = from_top < quota.loc[single.index]
    mask: Mask = selected.reindex(rows.index).to_numpy(dtype=bool)
    return mask
