"""How an arm picks its rows: one entry of METHODS each.

A cell is one cluster of one length group; q is a cell's quota, n its number of candidates, sorted by (score, raw
order). The score is the perplexity unless the arm says otherwise (`by`).

- `spread` takes ranks floor((2j+1)n / 2q), j = 0..q-1: evenly over the scores of every cell (KoQuality's `ppl`).
- `highest` takes the last q (KoQuality's `ppl_h`), `middle` ranks floor((n-q)/2) + j (Marion et al. 2023,
  arXiv 2309.04564).
- `steady` covers like `spread`, but keeps its rows when rows are added: strata are cells x BINS bins of the relative
  rank in the cell, and the lowest keys are taken. A candidate's key is (its place by hash in the stratum + the
  stratum's fixed fraction of 1) / the stratum's size (permanent random numbers: Ohlsson 1995, Coordination of samples
  using permanent random numbers). The fractions of a cell's strata are 1 / BINS apart.
- `random` takes the lowest hashes, `longest` the most characters of the output (Zhao et al. 2024, arXiv 2402.04833),
  `all` every candidate. These do not use cells.

Allocation `exact` gives all arms of one fraction the same number of rows; `koquality` picks as the original does
(nayohan/KoQuality, proceed_sampling_dataset.py), for parity.
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
"""Bins of relative rank in a cell, for `steady`."""


def select(candidates: pd.DataFrame, method: str, allocation: Allocation, fraction: float, seed: int) -> Mask:
    """Return which of the candidates are taken [N].

    `candidates` has `id`, the cell, `characters`, `score` and `rank`; for allocation `koquality` also `instruction`.
    """
    if allocation == "koquality":
        return original(candidates, method, fraction)
    return lowest(METHODS[method].keys(candidates, fraction, seed), total(len(candidates), fraction))


def total(candidates: int, fraction: float) -> int:
    """Return floor(fraction x candidates), the fraction read as the decimal it is written as."""
    return int(Decimal(str(fraction)) * candidates)


def lowest(keys: NDArray[np.float64], count: int) -> Mask:
    """Return where the `count` lowest keys are; of equal keys the first in raw order."""
    taken = np.zeros(len(keys), dtype=bool)
    taken[np.argsort(keys, kind="stable")[:count]] = True
    return taken


def spread_keys(rows: pd.DataFrame, fraction: float, _seed: int) -> Keys:
    rank, q, n = places_and_quotas(rows, fraction)
    return key(ranks_up_to(rank, q, n) > ranks_up_to(rank - 1, q, n))


def highest_keys(rows: pd.DataFrame, fraction: float, _seed: int) -> Keys:
    rank, q, n = places_and_quotas(rows, fraction)
    return key(rank >= n - q)


def middle_keys(rows: pd.DataFrame, fraction: float, _seed: int) -> Keys:
    rank, q, n = places_and_quotas(rows, fraction)
    start = (n - q) // 2
    return key((start <= rank) & (rank < start + q))


def key(taken: Mask) -> Keys:
    """Return 0 for what a cell gives, else 1; quotas add up to `total`, so the lowest keys are these rows."""
    return np.where(taken, 0.0, 1.0)


def places_and_quotas(rows: pd.DataFrame, fraction: float) -> tuple[NDArray[np.int64], ...]:
    """Return for every candidate its rank, its cell's quota and its cell's size [N] each."""
    cell, sizes = cells_of(rows)
    return rows["rank"].to_numpy(dtype=np.int64), quotas(sizes, fraction)[cell], sizes[cell]


def ranks_up_to(rank: NDArray[np.int64], q: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.int64]:
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


def steady_keys(rows: pd.DataFrame, _fraction: float, seed: int) -> Keys:
    """Return every candidate's key [N]; a stratum's keys are evenly spaced, so the lowest take its share.

    The candidate of lowest hash fixes the fraction of its cell, whatever the cell's number; the bins of a cell are
    1 / BINS apart, so that the rows of a cell are rounded once and not BINS times.
    """
    cell, sizes = cells_of(rows)
    part = rows["rank"].to_numpy(dtype=np.int64) * BINS // sizes[cell]
    stratum = cell * BINS + part
    hashes = pd.Series(uniform_hash(list(rows["id"]), "steady", seed))
    first = rows["id"].to_numpy()[hashes.groupby(cell).idxmin()]
    fraction = (uniform_hash(list(first), "cell", seed)[cell] + part / BINS) % 1
    place = hashes.groupby(stratum).rank(method="first").to_numpy(dtype=np.float64) - 1
    keys: Keys = (place + fraction) / np.bincount(stratum)[stratum]
    return keys


def random_keys(rows: pd.DataFrame, _fraction: float, seed: int) -> Keys:
    return uniform_hash(list(rows["id"]), "random", seed)


def longest_keys(rows: pd.DataFrame, _fraction: float, _seed: int) -> Keys:
    keys: Keys = -rows["characters"].to_numpy(dtype=np.float64)
    return keys


def no_keys(rows: pd.DataFrame, _fraction: float, _seed: int) -> Keys:
    return np.zeros(len(rows))


class Method(NamedTuple):
    keys: Callable[[pd.DataFrame, float, int], Keys]
    """From candidates, fraction and seed to a key each [N]; the lowest keys are taken."""
    uses_cells: bool
    """Whether it needs perplexities, embeddings and cells, whose cost then is its own."""
    draws_rows: bool
    """Whether the seed draws the rows; otherwise it only trains."""


METHODS = {
    "spread": Method(spread_keys, uses_cells=True, draws_rows=False),
    "highest": Method(highest_keys, uses_cells=True, draws_rows=False),
    "middle": Method(middle_keys, uses_cells=True, draws_rows=False),
    "steady": Method(steady_keys, uses_cells=True, draws_rows=True),
    "random": Method(random_keys, uses_cells=False, draws_rows=True),
    "longest": Method(longest_keys, uses_cells=False, draws_rows=False),
    "all": Method(no_keys, uses_cells=False, draws_rows=False),
}


def known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"unknown method; there are {', '.join(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(known_method)]


def original(rows: pd.DataFrame, method: str, fraction: float) -> Mask:
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
