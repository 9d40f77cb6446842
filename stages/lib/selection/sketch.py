"""How many rows two selections share, from a few rows of each.

An id is a hash, so the lowest ids of a selection are a random sample of its rows, and the lowest ids of two selections
together are a random sample of the rows of both (bottom-k sketch: Broder 1997, On the resemblance and containment of
documents). So a few hundred ids of a selection, which git can hold, are enough to compare it with another.
"""

from collections.abc import Iterable

SIZE = 400


def sketch(ids: Iterable[str]) -> list[str]:
    """Return the lowest ids, at most SIZE."""
    return sorted(ids)[:SIZE]


def share_of_rows(one: list[str], other: list[str]) -> float:
    """Return the share of its rows that a selection has in common with another of its size: exact if both are whole."""
    whole = max(len(one), len(other)) < SIZE
    lowest = sorted({*one, *other})[: None if whole else SIZE]
    common = len({*one} & {*other} & {*lowest})
    return 2 * common / (len(lowest) + common)
