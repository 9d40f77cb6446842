"""The smallest difference that a comparison can resolve: what to know before paying for training.

A difference is resolved where a two-sided test at 5 % finds it in 80 of 100 repetitions (Cohen 1988, Statistical Power
Analysis, chapter 2). Differences are shares of right answers, from 0 to 1; macro-F1 resolves about as much.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
Part = tuple[float, int]
"""A part of the variance of a difference, and its degrees of freedom."""


def mde_of_items(error: float) -> float:
    """Return the difference that items alone resolve, `error` its standard error."""
    return error * float(stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER))


def mde_of_runs(items: Sequence[Part], among: Sequence[Part], both: float) -> float:
    """Return the difference that `runs.crossed` resolves where these are the expectations of its parts.

    The parts over runs, `among`, have so few degrees of freedom that the test's own scatter counts: they are taken over
    the quantiles of their chi-squared distributions, the others as known.
    """
    over_items, expected = sum(v for v, _ in items), sum(v for v, _ in among)
    error = variance_of_difference(over_items, np.array(expected), both) ** 0.5
    if not error:
        return 0.0
    scattered = [(v * mean_square, df) for (v, df), mean_square in zip(among, mean_squares(among), strict=True)]
    variance = variance_of_difference(over_items, sum((v for v, _ in scattered), np.array(0.0)), both)
    doubt = sum((v**2 / df for v, df in scattered), np.array(sum(v**2 / df for v, df in items)))
    bound = stats.t.ppf(1 - LEVEL / 2, variance**2 / doubt) * np.sqrt(variance)

    def lacks(shift: float) -> float:
        return float(stats.norm.sf((bound - shift) / error).mean() - POWER)

    return float(optimize.brentq(lacks, 0, bound.max() + 5 * error))


def variance_of_difference(over_items: float, over_runs: NDArray[np.float64], both: float) -> NDArray[np.float64]:
    """Return the variance of a difference: run x item is in both parts, and neither part without it is below 0."""
    return np.maximum(np.maximum(over_items, over_runs), over_items + over_runs - both)


def mean_squares(among: Sequence[Part], points: int = 30) -> list[NDArray[np.float64]]:
    """Return a grid of what each mean square over runs comes out as, over its expectation, equally likely."""
    middle = (np.arange(points) + 0.5) / points
    return list(np.meshgrid(*(stats.chi2.ppf(middle, df) / df for _, df in among)))


def mde_between_models(discordance: float, items: Sequence[int]) -> float:
    """Return what two models resolve in the mean over tasks of so many items each, by the interval over items alone.

    `discordance` is the share of items on which one model is right and the other wrong.
    """
    return mde_of_items(sum(variance for variance, _ in parts(discordance, items)) ** 0.5)


def mde_between_methods(discordance: float, spread: float, items: Sequence[int], runs: int) -> float:
    """Return what two methods of so many runs each resolve in the mean over tasks, over runs and items.

    `spread` is the standard deviation of a run's true mean score within a method. Two runs of one method are taken to
    differ on as many items as two runs of two methods: a seed moves as many answers as a small sample does, and then
    the noise of items falls with the runs too.
    """
    over_items = [(variance / runs, df) for variance, df in parts(discordance, items)]
    both = sum(variance for variance, _ in over_items)
    return mde_of_runs(over_items, [(both / 2 + spread**2 / runs, runs - 1)] * 2, both)


def parts(discordance: float, items: Sequence[int]) -> list[Part]:
    """Return what every task adds to the variance of a mean difference of two models."""
    return [(discordance / n / len(items) ** 2, n - 1) for n in items]
