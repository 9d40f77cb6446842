"""k-means inside one group of rows.

    N rows, D width, K clusters

`hashed` starts from k-means++ whose dice are the rows' own hashes, so that an added row throws no dice but its own,
over the `20 * K` rows of lowest hash; `k-means++` is scikit-learn's, with a seed, as in KoQuality.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.lib.hashes import dice

Init = Literal["hashed", "k-means++"]
POOL = 20
"""Rows per cluster from which the first centroids are drawn."""


class Clusters(NamedTuple):
    label: NDArray[np.int64]
    """[N], 0..K-1"""
    distance: NDArray[np.float64]
    """[N], Euclidean, to the row's centroid"""
    inertia: float


def fit(vectors_ND: NDArray[np.float32], ids: list[str], k: int, init: Init, n_init: int, seed: int) -> Clusters:
    """Fit once; with `hashed` there is one start, so `n_init` is not used."""
    from sklearn.cluster import KMeans

    if init == "hashed":
        model = KMeans(k, init=hashed_start(vectors_ND, ids, k, seed), n_init=1)
    else:
        model = KMeans(k, init="k-means++", n_init=n_init, random_state=seed)
    label = model.fit(vectors_ND).labels_.astype(np.int64)
    distance = np.linalg.norm(vectors_ND - centroids(vectors_ND, label, k)[label], axis=1)
    return Clusters(label, distance, float(np.square(distance).sum()))


def centroids(vectors_ND: NDArray[np.float32], label: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return the clusters' means [K, D], summed in row order: scikit-learn's sums depend on which thread ends first."""
    sums = np.zeros((k, vectors_ND.shape[1]))
    np.add.at(sums, label, vectors_ND)
    return sums / np.maximum(np.bincount(label, minlength=k), 1)[:, None]


def hashed_start(vectors_ND: NDArray[np.float32], ids: list[str], k: int, seed: int) -> NDArray[np.float32]:
    """Return K rows as first centroids [K, D]: greedy k-means++ (Arthur and Vassilvitskii 2007), dice by hash.

    A row is drawn in proportion to its squared distance by the smallest of -log(die) / distance; of the few smallest
    the one that lowers the sum of distances most is taken, as scikit-learn does.
    """
    order = np.argsort(dice(ids, "pool", seed), kind="stable")[: POOL * k]
    pool, names = vectors_ND[order].astype(np.float64), [ids[row] for row in order]
    chosen = [0]
    distance = squared_distance(pool, pool[0])
    for step in range(1, k):
        waits = -np.log1p(-dice(names, "start", seed, step)) / np.maximum(distance, 1e-12)
        tries = np.argsort(waits, kind="stable")[: 2 + int(np.log(k))]
        after = [np.minimum(distance, squared_distance(pool, pool[row])) for row in tries]
        best = int(np.argmin([values.sum() for values in after]))
        chosen.append(int(tries[best]))
        distance = after[best]
    return vectors_ND[order[chosen]]


def squared_distance(rows_ND: NDArray[np.float64], point_D: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.square(rows_ND - point_D).sum(axis=1)
    return squares
