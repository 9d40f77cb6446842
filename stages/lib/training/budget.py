"""Which rows a training presents, and in which step: one budget for every arm.

Rows come in epochs, each in an order of its own that the seed gives, and no two seeds share one: replicates of a method
that draws no rows differ in nothing else. A smaller arm repeats, a larger one stops early.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Literal

import numpy as np

from stages.lib.core.params import Positive, Section


class Budget(Section):
    unit: Literal["steps", "rows", "tokens", "epochs"]
    """Optimiser steps, rows or tokens presented are one number for all arms; epochs give a larger arm more training."""
    amount: Positive


def presented(budget: Budget, rows: Sequence[int], tokens: Sequence[int], batch: int, seed: int) -> list[list[int]]:
    """Return for every optimiser step the numbers of the packs that it presents, at most `batch`.

    `rows` and `tokens` say how many of them a pack holds. A budget of rows or tokens ends with the pack that reaches
    it. The last step of an epoch takes what is left.
    """
    costs = tokens if budget.unit == "tokens" else rows
    most = budget.amount * sum(rows) if budget.unit == "epochs" else budget.amount
    steps: list[list[int]] = []
    spent = 0
    for packs in batches(len(rows), batch, seed):
        if (len(steps) if budget.unit == "steps" else spent) >= most:
            break
        steps.append([])
        for pack in packs:
            if budget.unit == "steps" or spent < most:
                steps[-1].append(pack)
                spent += costs[pack]
    return steps


def batches(packs: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Yield the batches of one epoch after the other, without end."""
    for epoch in count():
        order = np.random.default_rng([seed, epoch]).permutation(packs).tolist()
        yield from (order[start : start + batch] for start in range(0, packs, batch))
