"""k-means inside one group of rows.

    N rows, D width, K clusters

`hashed` starts from k-means++ whose dice are the rows' own hashes, so that an added row throws no dice but its own,
over the `20 * K` rows of lowest hash, and stops after ROUNDS; `k-means++` is scikit-learn's, with a seed, as in
KoQuality. `lloyd` looks at every row in every round, `minibatch` (Sculley 2010) at some thousands.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.lib.text.hashing import uniform_hash

Algorithm = Literal["lloyd", "minibatch"]
Init = Literal["hashed", "k-means++"]
POOL = 20
"""Rows per cluster from which the first centroids are drawn."""
LEAST = 0.2
"""Share of the best gain with which a drawn row is taken."""
PASSED_OVER = 1e30
"""On the clock of a row that gains less: it is drawn again after all others only."""
ROUNDS = 3
"""Rounds of `lloyd` after a hashed start. More lower the inertia by 1 %, and let two added rows move every border."""
BATCH = 4096
"""Rows of a round of `minibatch`, and of a slice where float64 would be twice the vectors' memory."""


class Clusters(NamedTuple):
    label: NDArray[np.int64]
    """[N], 0..K-1"""
    distance: NDArray[np.float64]
    """[N], Euclidean, to the row's centroid"""
    inertia: float


def fit_clusters(
    vectors_ND: NDArray[np.float32], ids: list[str], k: int, algorithm: Algorithm, init: Init, n_init: int, seed: int
) -> Clusters:
    """Fit once; with `hashed` there is one start, so `n_init` is not used."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    start: dict[str, Any] = {"init": init, "n_init": n_init, "random_state": seed}
    rounds: dict[str, Any] = {}
    if init == "hashed":
        start |= {"init": hashed_start(vectors_ND, ids, k, seed), "n_init": 1}
        rounds = {"max_iter": ROUNDS, "tol": 0}
    model = MiniBatchKMeans(k, batch_size=BATCH, **start) if algorithm == "minibatch" else KMeans(k, **start, **rounds)
    label = model.fit(vectors_ND).labels_.astype(np.int64)
    distance = distances(vectors_ND, label, centroids(vectors_ND, label, k))
    return Clusters(label, distance, float(np.square(distance).sum()))


def centroids(vectors_ND: NDArray[np.float32], label: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return the clusters' means [K, D], summed in row order: scikit-learn's sums depend on which thread ends first."""
    sums = [vectors_ND[label == cluster].sum(axis=0, dtype=np.float64) for cluster in range(k)]
    return np.stack(sums) / np.maximum(np.bincount(label, minlength=k), 1)[:, None]


def distances(
    vectors_ND: NDArray[np.float32], label: NDArray[np.int64], centroids_KD: NDArray[np.float64]
) -> NDArray[np.float64]:
    slices = [slice(start, start + BATCH) for start in range(0, len(label), BATCH)]
    return np.concatenate([np.linalg.norm(vectors_ND[rows] - centroids_KD[label[rows]], axis=1) for rows in slices])


def hashed_start(vectors_ND: NDArray[np.float32], ids: list[str], k: int, seed: int) -> NDArray[np.float32]:
    """Return K rows as first centroids [K, D]: k-means++ (Arthur and Vassilvitskii 2007), dice by hash.

    A row is drawn in proportion to its squared distance by the smallest of -log(die) / distance, and keeps its die in
    every step. Of the next few (as many as scikit-learn tries) the first is taken that lowers the sum of distances by
    LEAST of what the best of them does; the best itself would often be another once a row is added.
    """
    order = np.argsort(uniform_hash(ids, "pool", seed), kind="stable")[: POOL * k]
    pool, names = vectors_ND[order].astype(np.float64), [ids[row] for row in order]
    clocks = -np.log1p(-uniform_hash(names, "start", seed))
    chosen: list[int] = [0]
    distance = squared_distance(pool, pool[0])
    while len(chosen) < k:
        clocks[chosen[-1]] = np.inf
        tries = np.argsort(clocks / np.maximum(distance, 1e-12), kind="stable")[: 2 + int(np.log(k))]
        after = [np.minimum(distance, squared_distance(pool, pool[row])) for row in tries]
        gains = distance.sum() - np.array([values.sum() for values in after])
        taken = int(np.argmax(gains >= LEAST * gains.max()))
        clocks[tries[:taken]] += PASSED_OVER
        chosen.append(int(tries[taken]))
        distance = after[taken]
    return vectors_ND[order[chosen]]


def squared_distance(rows_ND: NDArray[np.float64], point_D: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.square(rows_ND - point_D).sum(axis=1)
    return squares
