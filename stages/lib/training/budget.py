"""Which rows each step of a training presents, under a budget that is the same for every arm.

Rows come in epochs. Every epoch has its own order, drawn from the seed and the epoch's number, and no two seeds share
an order: if a method draws no rows, its replicates differ in nothing else. A smaller arm repeats its rows, a larger one
stops early.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Literal

import numpy as np

from stages.lib.core.params import Positive, Section


class Budget(Section):
    unit: Literal["steps", "rows", "tokens", "epochs"]
    """Optimiser steps, rows or tokens presented: the same for all arms. Under `epochs` a larger arm trains longer."""
    amount: Positive


def presented(budget: Budget, rows: Sequence[int], tokens: Sequence[int], batch: int, seed: int) -> list[list[int]]:
    """Return for every optimiser step the indices of the packs that it presents, at most `batch`.

    `rows` and `tokens` are the numbers of rows and tokens in each pack. A budget of rows or tokens ends with the pack
    that reaches it. The last step of an epoch presents what is left.
    """
    costs = tokens if budget.unit == "tokens" else rows
    limit = budget.amount * sum(rows) if budget.unit == "epochs" else budget.amount
    steps: list[list[int]] = []
    spent = 0
    for packs in batches(len(rows), batch, seed):
        if (len(steps) if budget.unit == "steps" else spent) >= limit:
            break
        steps.append([])
        for pack in packs:
            if budget.unit == "steps" or spent < limit:
                steps[-1].append(pack)
                spent += costs[pack]
    return steps


def batches(packs: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Yield the batches of one epoch after another, without end."""
    for epoch in count():
        order = np.random.default_rng([seed, epoch]).permutation(packs).tolist()
        yield from (order[start : start + batch] for start in range(0, packs, batch))
