"""KoBEST (Kim et al. 2022, arXiv 2204.04541; skt/kobest_v1 on the hub)."""

from typing import NamedTuple


class KobestTask(NamedTuple):
    columns: tuple[str, ...]
    """The columns that are kept of an item."""
    identifying: tuple[str, ...]
    """Columns whose text identifies the item by itself. A word, `원인`, an ending or an alternative does not."""
    choices: int
    """Labels are 0..choices-1."""
    test_items: int
    """Number of test items in version 1.0. A score over other items is not a KoBEST score."""


KOBEST = {
    "boolq": KobestTask(("paragraph", "question", "label"), ("paragraph", "question"), 2, 1404),
    "copa": KobestTask(("premise", "question", "alternative_1", "alternative_2", "label"), ("premise",), 2, 1000),
    "hellaswag": KobestTask(("context", "ending_1", "ending_2", "ending_3", "ending_4", "label"), ("context",), 4, 500),
    "sentineg": KobestTask(("sentence", "label"), ("sentence",), 2, 397),
    "wic": KobestTask(("word", "context_1", "context_2", "label"), ("context_1", "context_2"), 2, 1260),
}
"""By KoBEST's own names, which `evaluate.tasks` uses. Every other task has the harness's name."""
