"""Stable hashes of texts, as hex digits or as numbers in [0, 1)."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def text_hash(*parts: str) -> str:
    """Return a hash of the parts as 16 hex digits. Lengths are hashed too, so ("ab", "c") is not ("a", "bc")."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def uniform_hash(texts: list[str], *key: object) -> NDArray[np.float64]:
    """Return a pseudorandom number in [0, 1) for each text [N]: a function of only the text and the key."""
    salt = "/".join(str(part) for part in key)
    values = np.array([int(text_hash(salt, text), 16) >> 11 for text in texts], dtype=np.uint64)
    return values.astype(np.float64) / 2.0**53
