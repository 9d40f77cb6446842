"""The minimum detectable effect (MDE) of a comparison, known before anything is trained.

It is the smallest difference that a two-sided test at 5 % finds in 80 of 100 repetitions (Cohen 1988, Statistical
Power Analysis, chapter 2). Differences are shares of correct answers, from 0 to 1; macro-F1 has about the same MDE.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from stages.lib.statistics.replicates import LEVEL, Part, Parts, half_width, pooled

POWER = 0.8


def mde_of_items(error: float) -> float:
    """Return the MDE of a difference between two models; `error` is its standard error over items."""
    return error * float(stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER))


def mde_of_runs(parts: Parts) -> float:
    """Return the MDE of `replicates.crossed` if these are the expected parts of its variance.

    The parts over runs have so few degrees of freedom that the scatter of their estimates matters: the power is
    averaged over the quantiles of their chi-squared distributions. The others are taken as known.
    """
    items, runs, both = parts
    error = float(np.maximum(items.variance - both, 0) + pooled(runs).variance) ** 0.5
    if not error:
        return 0.0
    estimated = [Part(v * mean_square, df) for (v, df), mean_square in zip(runs, mean_squares(runs), strict=True)]
    bound = half_width(LEVEL, items, pooled(estimated), both)

    def excess_power(difference: float) -> float:
        return float(stats.norm.sf((bound - difference) / error).mean() - POWER)

    return float(optimize.brentq(excess_power, 0, bound.max() + 5 * error))


def mean_squares(runs: Sequence[Part], points: int = 30) -> list[NDArray[np.float64]]:
    """Return a grid of equally likely values of every mean square over runs, each divided by its expectation."""
    middle = (np.arange(points) + 0.5) / points
    return list(np.meshgrid(*(stats.chi2.ppf(middle, df) / df for _, df in runs)))


def mde_between_models(discordance: float, items: Sequence[int]) -> float:
    """Return the MDE of two models in mean accuracy over tasks with these numbers of items.

    `discordance` is the share of items that one model answers correctly and the other does not.
    """
    return mde_of_items(variance_over_items(discordance, items) ** 0.5)


def mde_between_methods(discordance: float, spread: float, items: Sequence[int], runs: int) -> float:
    """Return the MDE of two methods with `runs` runs each, in mean accuracy over tasks, over runs and items.

    `spread` is the standard deviation of a run's true mean score within a method. Two runs of one method are assumed to
    differ on as many items as runs of two methods do, because a seed changes as many answers as a small sample does.
    The noise of the items then shrinks with the number of runs too.
    """
    both = variance_over_items(discordance, items) / runs
    return mde_of_runs(Parts(Part(both, sum(items) - 1), [Part(both / 2 + spread**2 / runs, runs - 1)] * 2, both))


def variance_over_items(discordance: float, items: Sequence[int]) -> float:
    """Return the variance of the mean difference of two models over tasks."""
    return sum(discordance / n for n in items) / len(items) ** 2
