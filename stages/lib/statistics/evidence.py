"""What are several runs evidence about: their method, or only these selections or this training?

A difference between methods can come from the method, from the rows that it happened to select, or from the training.
An interval over runs (`replicates`) contains the chance that varies from run to run, and takes runs to be independent.
Runs that share rows share the chance of these rows. If two of K runs have a share s of their rows in common, and random
selections of their size a share f, the chance of their rows correlates by r = (s - f) / (1 - f), and the variance of
their mean is (1 + (K - 1) r) / (1 - r) times the one that their spread shows. With one selection it is infinitely
larger, so more runs only make a chance difference look more certain.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

MOST = 1.5
"""Runs stand for their method if the variance of their mean is at most this many times the one that they show. A method
that is no better than a control whose runs vary as much, and are independent, then beats it in at most 4.0 of 100 cases
(nominal: 2.5), because P(z > 1.96 / sqrt((1.5 + 1) / 2)) = 0.040."""


class Varied(NamedTuple):
    """What varies over the runs of a method."""

    runs: int
    seeds: int
    """Different training seeds."""
    shared_rows: float
    """Share of its rows that a run has in common with another one, in the mean over pairs of runs."""
    shared_by_chance: float
    """Share that two random selections of this size have in common."""


class Repeatable(Protocol):
    """An arm or a preference."""

    @property
    def replicate(self) -> str | None: ...


def runs_of(entries: Mapping[str, Repeatable]) -> dict[str, list[str]]:
    """Return the runs of every method or preference: the entry that names it, and its replicates."""
    groups: dict[str, list[str]] = {}
    for name, entry in entries.items():
        groups.setdefault(entry.replicate or name, []).append(name)
    return groups


def rows_vary(varied: Varied) -> bool:
    """Return whether the runs differ enough in rows for the chance of the rows to be in an interval over runs."""
    runs, _, shared, by_chance = varied
    if shared == 1:
        return False
    correlation = max(0.0, (shared - by_chance) / (1 - by_chance))
    return (1 + (runs - 1) * correlation) / (1 - correlation) <= MOST


def name_subject(varied: Varied, method: str, whose: str) -> str:
    """Return what the runs are evidence about: the method only if both its rows and its training vary."""
    if rows_vary(varied) and varied.seeds == varied.runs:
        return method
    if varied.shared_rows == 1:
        return f"{whose} selection, trained {varied.runs} times"
    seeds = "one seed" if varied.seeds == 1 else f"{varied.seeds} seeds"
    return f"{whose} set of {varied.runs} selections, trained with {seeds}"
