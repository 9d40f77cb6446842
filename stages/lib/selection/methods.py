"""How an arm selects its rows. Each method is one entry of METHODS.

A group is a cell unless the arm's allocation says otherwise. q is the quota of a group and n the number of its
candidates, which are sorted by (score, order of raw). The score is the perplexity unless the arm names another (`by`).

- `spread` takes ranks floor((2j+1)n / 2q), j = 0..q-1: evenly over the scores of each group (KoQuality's `ppl`).
- `highest` takes the last q ranks (KoQuality's `ppl_h`; by `ifd` in one group: Li et al. 2023, arXiv 2308.12032).
- `middle` takes ranks floor((n-q)/2) + j (Marion et al. 2023, arXiv 2309.04564).
- `steady` covers the scores like `spread`, but keeps most of its rows when rows are added. It divides each group into
  BINS bins by relative rank; a bin of a group is a stratum. The key of a candidate is (its rank by hash in the stratum
  + the stratum's fixed fraction of 1) / size of the stratum, and the lowest keys are selected (permanent random
  numbers: Ohlsson 1995, Coordination of samples using permanent random numbers).

The others use no cells:

- `random` takes the rows with the lowest hashes.
- `longest` takes the rows with the most characters of output (Zhao et al. 2024, arXiv 2402.04833).
- `coverage` and `deita` take rows that are far from one another (`diversity`).
- `all` and `threshold` take every row that they may.

The module `koquality` has the allocation that selects what the original does.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator

from stages.lib.selection.diversity import Places, Vectors, best_apart, farthest_first
from stages.lib.selection.koquality import select_as_koquality
from stages.lib.selection.quotas import (
    Allocation,
    Counts,
    Mask,
    arm_size,
    lowest_of_each,
    number_groups,
    quotas,
)
from stages.lib.text.hashing import uniform_hash

Keys = NDArray[np.float64]
BINS = 3
"""Bins per group, by relative rank, in `steady`."""
PPL, LENGTH = "ppl", "characters"
NO_VECTORS = np.empty((0, 0), dtype=np.float32)


class Wanted(NamedTuple):
    """What an arm asks of its method."""

    share: Fraction
    """Share of the candidates to select."""
    seed: int = 0
    allocation: Allocation = "exact"
    distance: float = 0
    """Least cosine distance between two rows of `deita`."""
    vectors: Vectors = NO_VECTORS
    """Unit vectors of the candidates [N, D], for methods that read them."""


def select(candidates: pd.DataFrame, method: str, wanted: Wanted) -> Mask:
    """Return which of the candidates are selected [N]. `deita` may select fewer than wanted.

    `candidates` has the columns `id`, `source`, `length_group`, `cluster`, `characters`, `score` and `rank` (in its
    group); allocation `koquality` also needs `instruction`.
    """
    if wanted.allocation == "koquality":
        return select_as_koquality(candidates, method, float(wanted.share))
    keys = METHODS[method].keys(candidates, wanted)
    pool = number_groups(candidates, "source" if wanted.allocation == "source" else "whole")
    return lowest_of_each(keys, pool, quotas(np.bincount(pool), wanted.share))


def spread_keys(rows: pd.DataFrame, wanted: Wanted) -> Keys:
    rank, q, n = ranks_and_quotas(rows, wanted)
    return selected_first(ranks_up_to(rank, q, n) > ranks_up_to(rank - 1, q, n))


def highest_keys(rows: pd.DataFrame, wanted: Wanted) -> Keys:
    rank, q, n = ranks_and_quotas(rows, wanted)
    return selected_first(rank >= n - q)


def middle_keys(rows: pd.DataFrame, wanted: Wanted) -> Keys:
    rank, q, n = ranks_and_quotas(rows, wanted)
    start = (n - q) // 2
    return selected_first((start <= rank) & (rank < start + q))


def selected_first(selected: Mask) -> Keys:
    """Return keys that are lowest for these rows: the quotas add up to `arm_size`, so exactly these are selected."""
    return np.where(selected, 0.0, 1.0)


def ranks_and_quotas(rows: pd.DataFrame, wanted: Wanted) -> tuple[Counts, Counts, Counts]:
    """Return the rank of each candidate, the quota of its group and the size of its group, each [N]."""
    group = number_groups(rows, wanted.allocation)
    sizes = np.bincount(group)
    return rows["rank"].to_numpy(dtype=np.int64), quotas(sizes, wanted.share)[group], sizes[group]


def ranks_up_to(rank: Counts, q: Counts, n: Counts) -> Counts:
    """Return how many j in 0..q-1 have floor((2j+1)n / 2q) <= rank, which means (2j+1)n < 2q (rank+1)."""
    count: Counts = np.clip(-((n - 2 * q * (rank + 1)) // (2 * n)), 0, q)
    return count


def steady_keys(rows: pd.DataFrame, wanted: Wanted) -> Keys:
    """Return the key of each candidate [N]. The keys of a stratum are evenly spaced, so each stratum gives its share.

    The fixed fraction of a group comes from its candidate with the lowest hash, so the number of the group does not
    matter. The fractions of its strata are 1 / BINS apart, so that a group's rows are rounded once, not BINS times.
    """
    group = number_groups(rows, wanted.allocation)
    bin_number = rows["rank"].to_numpy(dtype=np.int64) * BINS // np.bincount(group)[group]
    stratum = group * BINS + bin_number
    hashes = pd.Series(uniform_hash(list(rows["id"]), "steady", wanted.seed))
    first_id = rows["id"].to_numpy()[hashes.groupby(group).idxmin()]
    fraction = (uniform_hash(list(first_id), "cell", wanted.seed)[group] + bin_number / BINS) % 1
    rank = hashes.groupby(stratum).rank(method="first").to_numpy(dtype=np.float64) - 1
    keys: Keys = (rank + fraction) / np.bincount(stratum)[stratum]
    return keys


def random_keys(rows: pd.DataFrame, wanted: Wanted) -> Keys:
    return uniform_hash(list(rows["id"]), "random", wanted.seed)


def longest_keys(rows: pd.DataFrame, _wanted: Wanted) -> Keys:
    keys: Keys = -rows["characters"].to_numpy(dtype=np.float64)
    return keys


def coverage_keys(rows: pd.DataFrame, wanted: Wanted) -> Keys:
    taken = farthest_first(wanted.vectors, arm_size(len(rows), wanted.share))
    return selected_only(taken, len(rows))


def deita_keys(rows: pd.DataFrame, wanted: Wanted) -> Keys:
    best_first = np.argsort(-rows["score"].to_numpy(dtype=np.float64), kind="stable")
    taken = best_apart(wanted.vectors, best_first, arm_size(len(rows), wanted.share), wanted.distance)
    return selected_only(taken, len(rows))


def selected_only(taken: Places, count: int) -> Keys:
    """Return finite keys for these rows only, because no other row may be selected."""
    keys = np.full(count, np.inf)
    keys[taken] = 0
    return keys


def equal_keys(rows: pd.DataFrame, _wanted: Wanted) -> Keys:
    return np.zeros(len(rows))


class Method(NamedTuple):
    keys: Callable[[pd.DataFrame, Wanted], Keys]
    """Maps the candidates and what is wanted of them to a key for each candidate [N]; the lowest keys are selected."""
    uses_cells: bool
    """Whether it gives each cell a share, unless the arm's allocation names other groups."""
    draws_rows: bool
    """Whether another seed selects other rows; otherwise the seed affects only training."""
    by: str | None = None
    """The score that it ranks by, None if none. If it is the perplexity, an arm can name another."""
    allocations: tuple[Allocation, ...] = ("exact",)
    reads_vectors: bool = False
    """Whether it selects by the rows' embeddings."""


BY_GROUP: tuple[Allocation, ...] = ("exact", "source", "whole")
METHODS = {
    "spread": Method(spread_keys, uses_cells=True, draws_rows=False, by=PPL, allocations=(*BY_GROUP, "koquality")),
    "highest": Method(highest_keys, uses_cells=True, draws_rows=False, by=PPL, allocations=(*BY_GROUP, "koquality")),
    "middle": Method(middle_keys, uses_cells=True, draws_rows=False, by=PPL, allocations=BY_GROUP),
    "steady": Method(steady_keys, uses_cells=True, draws_rows=True, by=PPL, allocations=BY_GROUP),
    "random": Method(random_keys, uses_cells=False, draws_rows=True, allocations=("exact", "source")),
    "longest": Method(longest_keys, uses_cells=False, draws_rows=False, by=LENGTH, allocations=("exact", "source")),
    "coverage": Method(coverage_keys, uses_cells=False, draws_rows=False, reads_vectors=True),
    "deita": Method(deita_keys, uses_cells=False, draws_rows=False, by=PPL, reads_vectors=True),
    "threshold": Method(equal_keys, uses_cells=False, draws_rows=False, by=PPL),
    "all": Method(equal_keys, uses_cells=False, draws_rows=False),
}


def uses_cells(method: str, allocation: Allocation) -> bool:
    """Return whether the selected rows depend on the cells."""
    return METHODS[method].uses_cells and allocation in ("exact", "koquality")


def check_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"unknown method; known methods: {', '.join(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(check_method)]
