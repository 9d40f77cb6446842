"""Find the rows whose vectors are close to that of an earlier row.

Up to a number of rows, all pairs are compared. Above it, rows are compared if they share one of their `NEAREST` nearest
of about sqrt(N) centroids, so the work grows with N ** 1.5. The cells of `cluster` would not do: rows of different
lengths are never in one cell, and over half of the pairs would be lost.

Axes: N rows, D width, K centroids, P pairs
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from stages.lib.core.progress import progress
from stages.lib.selection.kmeans import SEED_ROWS, centroids
from stages.lib.text.near_duplicates import Hashes, Near, first_equal, pair_numbers, require_few, union
from stages.lib.text.overlap import Ints

Vectors = NDArray[np.float32]
NEAREST = 4
"""On 33 thousand real rows, two find 71 and 79 % of the pairs with a cosine of 0.8 (TF-IDF, a small encoder), three 89
and 95 %, four 99.9 and 98.8 %."""
ROUNDS = 4
"""Of k-means. It only has to cut the rows into parts of similar sizes."""
BLOCK = 2048
"""Rows multiplied together."""
MARGIN = 1e-4
"""How far below the threshold a float32 product, whose last digits depend on the CPU, is computed again in float64."""


class Close(NamedTuple):
    """Pairs of a row and an item, sorted by row, then item [P]."""

    row: Ints
    item: Ints
    cosine: NDArray[np.float64]


def near_in_meaning(vectors_ND: Vectors, least: float, exact_rows: int) -> Near:
    """Return the pairs of rows whose cosine similarity is at least `least`; vectors have unit length, or are zero.

    Rows without tokens have zeros, and are near no row. Raises UserError if there are too many pairs to list.
    """
    rows = len(vectors_ND)
    digest = np.array([xxh3_64_intdigest(vector) for vector in vectors_ND], dtype=np.uint64)
    nothing = ~vectors_ND.any(axis=1)
    first = np.where(nothing, np.arange(rows), first_equal(digest))
    distinct = np.flatnonzero((first == np.arange(rows)) & ~nothing)
    groups = [distinct] if len(distinct) <= exact_rows else share_centroid(vectors_ND, distinct, digest)
    shown = progress(groups, len(groups), "near-duplicates, groups of rows")
    parts = (group[pairs] for group in shown for pairs in close_pairs(vectors_ND[group], least - MARGIN))
    later, earlier = np.divmod(union((pair_numbers(pairs, rows) for pairs in parts), least), max(rows, 1))
    similarity = cosines(vectors_ND, later, vectors_ND, earlier)
    listed = similarity >= least
    return Near(first, later[listed], earlier[listed], similarity[listed])


def close_pairs(vectors_ND: Vectors, least: float) -> Iterator[Ints]:
    """Yield the pairs of rows [P, 2] whose product is at least `least`, for a block of rows at a time."""
    for start in range(0, len(vectors_ND), BLOCK):
        one, other = np.nonzero(vectors_ND[start : start + BLOCK] @ vectors_ND[start:].T >= least)
        yield np.stack([one, other], axis=1)[one < other] + start


def near_items(vectors_ND: Vectors, items_MD: Vectors, least: float) -> Close:
    """Return every pair of a row and an item whose cosine similarity is at least `least`. Raises UserError if
    there are too many to list."""
    parts = [np.empty((2, 0), dtype=np.int64)]
    for start in range(0, len(vectors_ND), BLOCK):
        row, item = np.nonzero(vectors_ND[start : start + BLOCK] @ items_MD.T >= least - MARGIN)
        parts.append(np.stack([row + start, item]))
        require_few(sum(part.shape[1] for part in parts), least)
    row, item = np.concatenate(parts, axis=1)
    similarity = cosines(vectors_ND, row, items_MD, item)
    listed = similarity >= least
    return Close(row[listed], item[listed], similarity[listed])


def cosines(one_ND: Vectors, one: Ints, other_ND: Vectors, other: Ints) -> NDArray[np.float64]:
    """Return the products of these pairs of rows [P] in float64, at most 1."""
    found = np.empty(len(one))
    for start in range(0, len(one), BLOCK):
        part = slice(start, start + BLOCK)
        found[part] = (one_ND[one[part]].astype(np.float64) * other_ND[other[part]]).sum(axis=1)
    return np.minimum(found, 1.0)


def share_centroid(vectors_ND: Vectors, rows: Ints, digest: Hashes) -> list[Ints]:
    """Return for every centroid the rows, among these, that have it among their nearest."""
    centroids_KD = find_centroids(vectors_ND, rows[np.argsort(digest[rows])])
    nearest = np.empty((len(rows), NEAREST), dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        products = vectors_ND[rows[start : start + BLOCK]] @ centroids_KD.T
        nearest[start : start + BLOCK] = np.argpartition(-products, NEAREST - 1, axis=1)[:, :NEAREST]
    order = np.argsort(nearest.ravel(), kind="stable")
    borders = np.searchsorted(nearest.ravel()[order], np.arange(1, len(centroids_KD)))
    return np.split(rows[order // NEAREST], borders)


def find_centroids(vectors_ND: Vectors, order: Ints) -> Vectors:
    """Return about sqrt(N) unit vectors [K, D]: spherical k-means over the first rows of `order`, started at the first.

    `order` sorts the rows by hash, so that neither a seed nor the order of raw has an effect.
    """
    k = round(len(order) ** 0.5)
    sample = vectors_ND[order[: SEED_ROWS * k]]
    centroids_KD = sample[:k]
    for _ in range(ROUNDS):
        means_KD = centroids(sample, (sample @ centroids_KD.T).argmax(axis=1), k)
        lengths = np.linalg.norm(means_KD, axis=1, keepdims=True)
        centroids_KD = np.where(lengths > 0, means_KD / np.maximum(lengths, 1e-12), centroids_KD).astype(np.float32)
    return centroids_KD
