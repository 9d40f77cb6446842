"""k-means within one length group.

    N rows, D width, K clusters

`init: k-means++` is scikit-learn's, with a seed, as in KoQuality. `init: hashed` is k-means++ whose random numbers are
hashes of the row ids, drawn from the `20 * K` rows with the lowest hashes and stopped after ROUNDS rounds: adding a row
changes no other row's random number. `algorithm: lloyd` looks at every row in every round, `minibatch` (Sculley 2010)
at a few thousand.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.lib.text.hashing import uniform_hash

Algorithm = Literal["lloyd", "minibatch"]
Init = Literal["hashed", "k-means++"]
SEED_ROWS = 20
"""Rows per cluster that the first centroids of a hashed start are drawn from."""
MIN_GAIN = 0.2
"""A drawn row becomes a centroid if it gains at least this share of what the best drawn row gains."""
SKIPPED = 1e30
"""Added to the waiting time of a drawn row that gains less, so that it is drawn again only after all others."""
ROUNDS = 3
"""Rounds of `lloyd` after a hashed start. More would lower the inertia by 1 %, and let two added rows move every
border."""
BATCH = 4096
"""Rows in a round of `minibatch`, and in a slice where float64 copies would double the memory of the vectors."""


class Clusters(NamedTuple):
    label: NDArray[np.int64]
    """[N], 0..K-1"""
    distance: NDArray[np.float64]
    """[N], Euclidean distance to the row's centroid"""
    inertia: float


def fit_clusters(
    vectors_ND: NDArray[np.float32], ids: list[str], k: int, algorithm: Algorithm, init: Init, n_init: int, seed: int
) -> Clusters:
    """Return the clusters of the rows. A hashed start is deterministic, so there `n_init` has no effect."""
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
    """Return the means of the clusters [K, D], summed in row order.

    The bits of scikit-learn's own sums depend on which thread ends first.
    """
    sums = [vectors_ND[label == cluster].sum(axis=0, dtype=np.float64) for cluster in range(k)]
    return np.stack(sums) / np.maximum(np.bincount(label, minlength=k), 1)[:, None]


def distances(
    vectors_ND: NDArray[np.float32], label: NDArray[np.int64], centroids_KD: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance of each row to the centroid of its cluster [N]."""
    slices = [slice(start, start + BATCH) for start in range(0, len(label), BATCH)]
    return np.concatenate([np.linalg.norm(vectors_ND[rows] - centroids_KD[label[rows]], axis=1) for rows in slices])


def hashed_start(vectors_ND: NDArray[np.float32], ids: list[str], k: int, seed: int) -> NDArray[np.float32]:
    """Return K rows as first centroids [K, D]: k-means++ (Arthur and Vassilvitskii 2007) with hashes as random numbers.

    k-means++ draws a row with probability proportional to its squared distance from the nearest centroid. Here each
    row has one exponential waiting time, made from its hash and kept in every step; the row with the smallest waiting
    time / squared distance is drawn. As in scikit-learn, each step draws 2 + log K rows. Of these it takes the first
    that lowers the sum of squared distances by at least MIN_GAIN of what the best one does: after a row is added, the
    best one would often be another row.
    """
    order = np.argsort(uniform_hash(ids, "pool", seed), kind="stable")[: SEED_ROWS * k]
    rows, names = vectors_ND[order].astype(np.float64), [ids[row] for row in order]
    waiting = -np.log1p(-uniform_hash(names, "start", seed))
    chosen: list[int] = [0]
    distance = squared_distance(rows, rows[0])
    while len(chosen) < k:
        waiting[chosen[-1]] = np.inf
        drawn = np.argsort(waiting / np.maximum(distance, 1e-12), kind="stable")[: 2 + int(np.log(k))]
        after = [np.minimum(distance, squared_distance(rows, rows[row])) for row in drawn]
        gains = distance.sum() - np.array([values.sum() for values in after])
        first = int(np.argmax(gains >= MIN_GAIN * gains.max()))
        waiting[drawn[:first]] += SKIPPED
        chosen.append(int(drawn[first]))
        distance = after[first]
    return vectors_ND[order[chosen]]


def squared_distance(rows_ND: NDArray[np.float64], point_D: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.square(rows_ND - point_D).sum(axis=1)
    return squares
