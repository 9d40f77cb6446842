"""Rows that are far from one another, by the cosine distance between their unit vectors.

    N rows, D width, T rows taken, B rows of a block

No matrix of distances between all rows is ever built.
"""

import numpy as np
from numpy.typing import NDArray

from stages.lib.core.progress import progress

Vectors = NDArray[np.float32]
Places = NDArray[np.int64]
BLOCK = 512
"""Rows that `best_apart` compares with those taken before in one matrix product."""


def farthest_first(vectors_ND: Vectors, count: int) -> Places:
    """Return `count` rows, each the farthest from those before it: greedy k-center.

    The distance of a row to the rows before it is that to the nearest of them. The first row is the one nearest to the
    mean of all; of equally far rows, the first is taken. (Sener & Savarese 2018, arXiv 1708.00489, algorithm 1.)
    """
    taken = np.empty(count, dtype=np.int64)
    nearness = np.full(len(vectors_ND), -np.inf, dtype=np.float32)
    row = int(np.argmax(vectors_ND @ vectors_ND.mean(axis=0, dtype=np.float64).astype(np.float32)))
    for place in progress(range(count), count, "coverage, rows"):
        taken[place] = row
        np.maximum(nearness, vectors_ND @ vectors_ND[row], out=nearness)
        nearness[row] = np.inf
        row = int(np.argmin(nearness))
    return taken


def best_apart(vectors_ND: Vectors, best_first: Places, count: int, distance: float) -> Places:
    """Return the first `count` rows of `best_first`, leaving out those nearer than `distance` to one that is returned.

    Fewer are returned if the rows run out. (DEITA's filter: Liu et al. 2023, arXiv 2312.15685; hkust-nlp/deita,
    selection/filter/base.py, whose threshold of 0.9 is a cosine similarity, so a distance of 0.1.)
    """
    taken: list[int] = []
    taken_TD = np.empty((count, vectors_ND.shape[1]), dtype=np.float32)
    starts = range(0, len(best_first), BLOCK)
    for start in progress(starts, len(starts), "deita, blocks"):
        rows = best_first[start : start + BLOCK]
        block_BD = vectors_ND[rows]
        free_B = np.all(block_BD @ taken_TD[: len(taken)].T <= 1 - distance, axis=1)
        near_BB = block_BD @ block_BD.T > 1 - distance
        for place in range(len(rows)):
            if free_B[place] and len(taken) < count:
                taken_TD[len(taken)] = block_BD[place]
                taken.append(int(rows[place]))
                free_B &= ~near_BB[place]
        if len(taken) == count:
            break
    return np.array(taken, dtype=np.int64)
