"""The minimum detectable effect (MDE) of a comparison, known before anything is trained.

It is the smallest difference that a two-sided test at 5 % finds in 80 of 100 repetitions (Cohen 1988, Statistical
Power Analysis, chapter 2). Differences are shares of correct answers, from 0 to 1; macro-F1 has about the same MDE.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
Part = tuple[float, int]
"""A component of the variance of a difference, and its degrees of freedom."""


def mde_of_items(error: float) -> float:
    """Return the MDE of a difference between two models; `error` is its standard error over items."""
    return error * float(stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER))


def mde_of_runs(items: Sequence[Part], among: Sequence[Part], both: float) -> float:
    """Return the MDE of `replicates.crossed` if these are the expected values of its variance components.

    The components over runs, `among`, have so few degrees of freedom that the scatter of their estimates matters: the
    power is averaged over the quantiles of their chi-squared distributions. The others are taken as known.
    """
    over_items, expected = sum(v for v, _ in items), sum(v for v, _ in among)
    error = variance_of_difference(over_items, np.array(expected), both) ** 0.5
    if not error:
        return 0.0
    scattered = [(v * mean_square, df) for (v, df), mean_square in zip(among, mean_squares(among), strict=True)]
    variance = variance_of_difference(over_items, sum((v for v, _ in scattered), np.array(0.0)), both)
    squares_by_df = sum((v**2 / df for v, df in scattered), np.array(sum(v**2 / df for v, df in items)))
    bound = stats.t.ppf(1 - LEVEL / 2, variance**2 / squares_by_df) * np.sqrt(variance)

    def excess_power(difference: float) -> float:
        return float(stats.norm.sf((bound - difference) / error).mean() - POWER)

    return float(optimize.brentq(excess_power, 0, bound.max() + 5 * error))


def variance_of_difference(over_items: float, over_runs: NDArray[np.float64], both: float) -> NDArray[np.float64]:
    """Return the variance of a difference. Both parts contain run x item, and neither is negative without it."""
    return np.maximum(np.maximum(over_items, over_runs), over_items + over_runs - both)


def mean_squares(among: Sequence[Part], points: int = 30) -> list[NDArray[np.float64]]:
    """Return a grid of equally likely values of every mean square over runs, each divided by its expectation."""
    middle = (np.arange(points) + 0.5) / points
    return list(np.meshgrid(*(stats.chi2.ppf(middle, df) / df for _, df in among)))


def mde_between_models(discordance: float, items: Sequence[int]) -> float:
    """Return the MDE of two models in mean accuracy over tasks with these numbers of items.

    `discordance` is the share of items that one model answers correctly and the other does not.
    """
    return mde_of_items(sum(variance for variance, _ in parts(discordance, items)) ** 0.5)


def mde_between_methods(discordance: float, spread: float, items: Sequence[int], runs: int) -> float:
    """Return the MDE of two methods with `runs` runs each, in mean accuracy over tasks, over runs and items.

    `spread` is the standard deviation of a run's true mean score within a method. Two runs of one method are assumed to
    differ on as many items as runs of two methods do, because a seed changes as many answers as a small sample does.
    The noise of the items then shrinks with the number of runs too.
    """
    over_items = [(variance / runs, df) for variance, df in parts(discordance, items)]
    both = sum(variance for variance, _ in over_items)
    return mde_of_runs(over_items, [(both / 2 + spread**2 / runs, runs - 1)] * 2, both)


def parts(discordance: float, items: Sequence[int]) -> list[Part]:
    """Return what each task adds to the variance of the mean difference of two models."""
    return [(discordance / n / len(items) ** 2, n - 1) for n in items]
