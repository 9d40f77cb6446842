"""Synthetic rows that resemble real ones where it matters: lengths, distinct texts, topics of uneven size."""

import numpy as np
from numpy.typing import NDArray

CENTRES = 160
"""Topics."""


def long_text(rng: np.random.Generator) -> str:
    """Return a million characters: words of one to five Hangul syllables."""
    syllables = rng.integers(0xAC00, 0xD7A4, 1_000_000)
    syllables[np.cumsum(rng.integers(2, 7, 200_000)) % 1_000_000] = ord(" ")
    return syllables.astype("<u4").tobytes().decode("utf-32-le")


def pieces(text: str, rows: int, typical: int, spread: float, rng: np.random.Generator) -> list[str]:
    """Return distinct texts whose lengths are log-normal with median `typical`, at most 4,000 characters."""
    characters = np.minimum(rng.lognormal(np.log(typical), spread, rows).astype(int) + 1, 4_000)
    starts = rng.integers(0, len(text) - 4_000, rows)
    return [f"{text[s : s + n]} {row}" for row, (s, n) in enumerate(zip(starts, characters, strict=True))]


def unit_vectors(centres: NDArray[np.float32], rows: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return unit vectors [rows, D] around centres of uneven size.

    Before normalisation they are as far from their centre as the centre is from the origin.
    """
    share = 1 / np.arange(1, len(centres) + 1)
    near = centres[rng.choice(len(centres), rows, p=share / share.sum())]
    vectors = near + rng.normal(size=near.shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
