"""Hashes that stay: of a text, and as the fixed dice of a row."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def text_hash(*parts: str) -> str:
    """Return 16 hex digits of a hash of the parts, each with its length."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def uniform_hash(texts: list[str], *key: object) -> NDArray[np.float64]:
    """Return a number in [0, 1) for every text [N], which the text and the key alone decide."""
    salt = "/".join(str(part) for part in key)
    values = np.array([int(text_hash(salt, text), 16) >> 11 for text in texts], dtype=np.uint64)
    return values.astype(np.float64) / 2.0**53
