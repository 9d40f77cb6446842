"""Find the rows that share most of their letters with an earlier row: MinHash in bands, every candidate verified.

The similarity of two rows is the Jaccard similarity of their sets of character n-grams. A hash function gives each row
the smallest hash among its n-grams, and two rows agree on it with a probability equal to their similarity (Broder 1997,
On the resemblance and containment of documents). Two rows are compared if they agree on all `PER_BAND` functions of one
of `BANDS` bands: of the pairs with a similarity of 0.7, 1 in 6,500 is missed; of those with 0.8, 1 in 20 million.

A fixed instruction puts thousands of rows in one bucket although their answers differ. Comparing all of them would take
quadratic time, so such rows are joined exactly (`join_crowd`), which misses no pair.

Axes: N rows, M n-grams, R rows whose n-grams are in memory, P pairs
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from stages.lib.core.errors import UserError
from stages.lib.core.progress import progress
from stages.lib.text.overlap import MULTIPLIER, Ints, hash_ngrams, normalise, ranges

log = logging.getLogger("stages")
Hashes = NDArray[np.uint64]
Read = Callable[[Ints], list[str]]
"""Returns the `comparable` texts of these rows, which are less than `BLOCK` rows apart."""
BANDS, PER_BAND = 32, 4
CROWD = 32
"""Most rows of a bucket in which all pairs are compared."""
BLOCK = 2**11
"""Rows whose texts are in memory together, at most 2**12 (see BITS). Their n-grams fit into the cache of a core."""
TOGETHER = 2**12
"""Pairs that are verified together, at most 2**12 (see BITS)."""
BITS = np.uint64(52)
"""Bits of an n-gram's hash that are compared. The other 12 number the pair or the row, so that one sort does both."""
POSTINGS = 2**22
"""Pairs of `join_crowd` that are looked at together."""
MOST_PAIRS = 30_000_000
"""More pairs than a table can usefully list."""
EPSILON = 1e-9
"""Tolerance of a number of n-grams, because shares have rounding errors."""


class Near(NamedTuple):
    first: Ints
    """The first row that equals each row [N]: the row itself if no earlier row does."""
    later: Ints
    """The later row of each pair of rows that are first [P]. Pairs are sorted by `later`, then `earlier`."""
    earlier: Ints
    similarity: NDArray[np.float64]


class Grams(NamedTuple):
    """The distinct n-grams of R rows."""

    hashes: Hashes
    """Those of the first row, then those of the second, and so on [M]."""
    start: Ints
    """Position of each row's first n-gram [R]."""
    size: Ints
    """N-grams of each row [R]."""


def comparable(text: str) -> str:
    """Return the letters and digits of the text; the text itself if it has none."""
    return normalise(text) or text


def near_in_letters(read: Read, rows: int, n: int, least: float) -> Near:
    """Return the pairs of rows whose n-grams have a Jaccard similarity of at least `least`.

    A text shorter than an n-gram is its own n-gram. Raises UserError if there are more than `MOST_PAIRS`.
    """
    digest, bands = sign(read, rows, n)
    first = first_equal(digest)
    number, crowded = bucket_pairs(bands, np.flatnonzero(first == np.arange(rows)), least)
    del bands
    log.info("%s candidates; %s rows in crowded buckets", f"{len(number):,}", f"{len(crowded):,}")
    number = np.union1d(number, pair_numbers(crowded[join_crowd(load_grams(read, crowded, n), least)], rows))
    pairs = np.stack(np.divmod(number, rows), axis=1)
    used = np.unique(pairs)
    similarity = verify(load_grams(read, used, n), np.searchsorted(used, pairs))
    listed = similarity >= least
    require_few(int(listed.sum()), least)
    return Near(first, pairs[listed, 0], pairs[listed, 1], similarity[listed])


def sign(read: Read, rows: int, n: int) -> tuple[Hashes, Hashes]:
    """Return a hash of each row's text [N], and the key of its bucket in every band [BANDS, N]."""
    digest, bands = np.empty(rows, dtype=np.uint64), np.empty((BANDS, rows), dtype=np.uint64)
    blocks = list(split(np.arange(rows)))
    for block in progress(blocks, len(blocks), "near-duplicates, blocks of rows"):
        texts = read(block)
        digest[block] = [xxh3_64_intdigest(text.encode()) for text in texts]
        bands[:, block] = band_keys(texts, n)
    return digest, bands


def split(rows: Ints) -> Iterator[Ints]:
    """Yield ascending rows in parts that `Read` accepts."""
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(rows // BLOCK)) + 1)


def filled_up(texts: list[str], n: int) -> list[str]:
    """Return the texts, each shorter one filled up to the length of an n-gram."""
    return [text.ljust(n, "\0") for text in texts]


def band_keys(texts: list[str], n: int) -> Hashes:
    """Return the keys [BANDS, texts]: a hash of the smallest hashes of the band's functions.

    The functions are x -> a x + b modulo 2**32 of a mixed 32-bit hash, with a odd.
    """
    hashes, owner = hash_ngrams(filled_up(texts, n), n)
    mixed = ((hashes ^ (hashes >> np.uint64(29))) * MULTIPLIER >> np.uint64(32)).astype(np.uint32)
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    keys, values = np.zeros((BANDS, len(texts)), dtype=np.uint64), np.empty_like(mixed)
    for number, (factor, term) in enumerate(functions()):
        np.add(np.multiply(mixed, factor, out=values), term, out=values)
        band = number // PER_BAND
        keys[band] = keys[band] * MULTIPLIER + np.minimum.reduceat(values, first)
    return keys


def functions() -> NDArray[np.uint32]:
    """Return a and b of every hash function [BANDS * PER_BAND, 2]."""
    numbers = [xxh3_64_intdigest(b"hash function %d" % number) for number in range(BANDS * PER_BAND)]
    return np.array([(number >> 32 | 1, number & 0xFFFFFFFF) for number in numbers], dtype=np.uint32)


def first_equal(digest: Hashes) -> Ints:
    """Return for each row the first row with an equal hash [N]."""
    _, first, group = np.unique(digest, return_index=True, return_inverse=True)
    rows: Ints = first[group]
    return rows


def bucket_pairs(bands: Hashes, distinct: Ints, least: float) -> tuple[Ints, Ints]:
    """Return the numbers of the pairs of distinct rows that share a bucket, and the rows of crowded buckets.

    Pairs within a crowded bucket are left out. Both results are ascending and without repetition.
    """
    is_crowded = np.zeros(bands.shape[1], dtype=bool)

    def pairs_of(keys: Hashes) -> Ints:
        order = np.argsort(keys[distinct])
        row, key = distinct[order], keys[distinct[order]]
        size = np.diff(np.flatnonzero(np.diff(key, prepend=~key[:1])), append=len(key))
        crowd = np.repeat(size > CROWD, size)
        is_crowded[row[crowd]] = True
        return pair_numbers(equal_pairs(row[~crowd], key[~crowd]), len(is_crowded))

    found = union(map(pairs_of, bands), least)
    return found, np.flatnonzero(is_crowded)


def equal_pairs(row: Ints, key: Hashes) -> Ints:
    """Return all pairs of rows with equal keys [P, 2]; the keys are sorted."""
    pairs, at, step = [np.empty((0, 2), dtype=np.int64)], np.arange(len(key)), 0
    while len(at):
        step += 1
        at = at[at + step < len(key)]
        at = at[key[at] == key[at + step]]
        pairs.append(np.stack([row[at], row[at + step]], axis=1))
    return np.concatenate(pairs)


def pair_numbers(pairs: Ints, rows: int) -> Ints:
    """Return later * N + earlier for each pair of rows [P]."""
    numbers: Ints = pairs.max(axis=1) * rows + pairs.min(axis=1)
    return numbers


def load_grams(read: Read, rows: Ints, n: int) -> Grams:
    parts = [distinct_hashes(read(block), n) for block in split(rows)]
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(hashes for hashes, _ in parts)])
    size = np.concatenate([np.empty(0, dtype=np.int64), *(size for _, size in parts)])
    return Grams(hashes, np.cumsum(size) - size, size)


def distinct_hashes(texts: list[str], n: int) -> tuple[Hashes, Ints]:
    """Return hashes of the distinct n-grams of each text, one text after the other, and how many each text has."""
    hashes, owner = hash_ngrams(filled_up(texts, n), n)
    key = np.sort(owner.astype(np.uint64) << BITS | hashes * MULTIPLIER >> np.uint64(64) - BITS)
    key = key[np.diff(key, prepend=~key[:1]) != 0]
    return key & (np.uint64(1) << BITS) - np.uint64(1), np.bincount((key >> BITS).astype(np.int64))


def verify(grams: Grams, pairs: Ints) -> NDArray[np.float64]:
    """Return the Jaccard similarity of each pair of positions in `grams` [P]."""
    similarity = np.empty(len(pairs))
    for start in range(0, len(pairs), TOGETHER):
        one, other = pairs[start : start + TOGETHER].T
        both, pair = np.concatenate([one, other]), np.tile(np.arange(len(one), dtype=np.uint64), 2)
        hashes = grams.hashes[ranges(grams.start[both], grams.size[both])]
        key = np.sort(np.repeat(pair, grams.size[both]) << BITS | hashes)
        twice = key[1:][key[1:] == key[:-1]] >> BITS
        shared = np.bincount(twice.astype(np.int64), minlength=len(one))
        similarity[start : start + TOGETHER] = shared / (grams.size[one] + grams.size[other] - shared)
    return similarity


def join_crowd(grams: Grams, least: float) -> Ints:
    """Return positions of pairs [P, 2] in `grams`, among them every pair with a similarity of at least `least`.

    The n-grams of each row are ranked from the rarest. If the first that rows A and B share has rank a in A and b in B,
    they share at most min(|A| - a, |B| - b). Similar rows share least / (1 + least) of |A| + |B|. So each row looks up
    only its rarest n-grams, and each of these only among rows of a size that can be similar (positional filter: Xiao et
    al. 2011, Efficient similarity joins for near-duplicate detection). The n-grams of a fixed instruction are looked up
    only by rows that have little else.
    """
    _, gram, spread = np.unique(grams.hashes, return_inverse=True, return_counts=True)
    owner = np.repeat(np.arange(len(grams.size)), grams.size)
    gram = gram[np.lexsort((gram, spread[gram], owner))]
    size, rank = grams.size[owner], np.arange(len(owner)) - grams.start[owner]
    rare = np.flatnonzero((rank <= (1 - least) * size + EPSILON) & (spread[gram] > 1))
    rare = rare[np.lexsort((owner[rare], size[rare], gram[rare]))]
    owner, size, left = owner[rare], size[rare], (size - rank)[rare]
    share, scale = least / (1 + least), int(size.max(initial=0)) + 1
    largest = np.clip(np.floor(left / share - size + EPSILON), 0, scale - 1).astype(np.int64)
    end = np.searchsorted(gram[rare] * scale + size, gram[rare] * scale + largest, side="right")
    count = np.maximum(end - np.arange(len(rare)) - 1, 0)

    def pairs_of(part: Ints) -> Ints:
        one, other = np.repeat(part, count[part]), ranges(part + 1, count[part])
        similar = left[other] >= share * (size[one] + size[other]) - EPSILON
        return pair_numbers(np.stack([owner[one[similar]], owner[other[similar]]], axis=1), len(grams.size))

    parts = np.split(np.arange(len(rare)), np.flatnonzero(np.diff(np.cumsum(count) // POSTINGS)) + 1)
    return np.stack(np.divmod(union(map(pairs_of, parts), least), max(len(grams.size), 1)), axis=1)


def union(parts: Iterable[Ints], least: float) -> Ints:
    """Return the distinct numbers of all parts, ascending. Raises UserError if there are more than `MOST_PAIRS`."""
    found = np.empty(0, dtype=np.int64)
    waiting = [found]
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) > len(found) + POSTINGS:
            found, waiting = np.unique(np.concatenate([found, *waiting])), [found[:0]]
            require_few(len(found), least)
    return np.unique(np.concatenate([found, *waiting]))


def require_few(pairs: int, least: float) -> None:
    """Raise UserError if the pairs are more than a table can usefully list."""
    if pairs > MOST_PAIRS:
        raise UserError(
            f"params.yaml: more than {MOST_PAIRS:,} pairs may have a similarity of at least {least}; raise "
            "listed_from, or choose it by examples with `python -m tools.calibrate`"
        )
