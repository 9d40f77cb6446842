"""Which texts are held out: drawn by a hash of each text, so that added texts change the draw only at its limit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.lib.text.hashing import uniform_hash


def draw_texts(
    texts: Sequence[str], rows: Sequence[int] | NDArray[np.int64], share: float, most: int, *key: object
) -> list[int]:
    """Return the positions of the drawn texts: a share of them, whose rows are at most `most` in all.

    `rows` are the numbers of rows that have each text. `key` is hashed with every text.
    """
    hashes = uniform_hash(list(texts), *key)
    drawn, room = [], most
    for position in np.argsort(hashes, kind="stable")[: int((hashes < share).sum())].tolist():
        if rows[position] <= room:  # a text with more rows is skipped, because a later one may fit
            drawn.append(position)
            room -= int(rows[position])
    return drawn
