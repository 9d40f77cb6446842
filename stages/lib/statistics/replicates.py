"""Does the method help? An interval over runs and items together.

Two models trained on different samples or with different seeds differ, and with enough items any such difference is
"significant". So several runs of each method answer the same items. A two-way analysis of variance, with runs nested in
the method and items crossed with both, gives the variance of the difference between the methods (Searle, Casella and
McCulloch 1992, Variance Components, chapter 4):

    over items + over runs - run x item, which both contain

Each method has its own variance over runs (Welch 1947, Biometrika 34, 28-35), because a method that draws no rows
varies less than one that does. There are hundreds of items but few runs. So the interval adds up two squared
half-widths (Howe 1974, Journal of the American Statistical Association 69, 789-794), that of the runs and that of the
items without run x item. Each has its own Student's t, with the degrees of freedom of Satterthwaite 1946, Biometrics
Bulletin 2(6), 110-114. One t for both covers too little: if the variance over runs comes out small by chance, the many
degrees of freedom of the items dominate, and nothing is left of the doubt about the runs.

Accuracy is a mean over items. Macro-F1 and loss per token are made one (`metrics.ratio_values`): each item's value is
the score plus the item's influence on it.

Dimension key: K runs of one method, N items of one task.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Values = NDArray[np.float64]
LEVEL = 0.05
ROUNDING = 1e-24
"""A variance below this comes from floating-point sums: all runs gave the same answers."""
LEAST = 0.75
"""The least half-width, as a share of the one over items. Without it, an interval over runs that tie by chance has no
width; with 1, two runs each cover up to 0.995 (`benchmarks.coverage`)."""
SMALLEST_P = 1e-100
"""A smaller p is given as this."""


class Part(NamedTuple):
    """A component of the variance of a difference, and its degrees of freedom; arrays hold many cases."""

    variance: float | Values
    df: float | Values


class Parts(NamedTuple):
    """What the variance of a difference between two methods consists of: items + runs - both."""

    items: Part
    """Over items."""
    runs: list[Part]
    """Over the runs of each method."""
    both: float
    """Run x item, which the other two contain."""


def crossed(ours: Sequence[Values], theirs: Sequence[Values]) -> dict[str, float]:
    """Return ours minus theirs in the unweighted mean over tasks: est, lo, hi, p and `run_sd`.

    Each sequence has one array [K, N] per task, with the same K >= 2 runs in each task and the same items in both
    sequences. `run_sd` is the standard deviation of a run's score within its method, without the noise of the items.
    """
    est = float(np.mean([a.mean() - b.mean() for a, b in zip(ours, theirs, strict=True)]))
    items, by_method, both = parts_of_variance(ours, theirs)
    runs = pooled(by_method)
    if items.variance + runs.variance < ROUNDING:
        return {"est": est, "lo": est, "hi": est, "p": 1.0, "run_sd": 0.0}
    half = float(half_width(LEVEL, items, runs, both))
    spread = max(0.0, float(runs.variance) - both) / sum(1 / len(method[0]) for method in (ours, theirs))
    p = p_value(est, items, runs, both)
    return {"est": est, "lo": est - half, "hi": est + half, "p": p, "run_sd": spread**0.5}


def half_width(level: float, items: Part, runs: Part, both: float) -> Values:
    """Return half the width of an interval that misses the truth in a share `level` of cases."""
    t_items, t_runs = (-special.stdtrit(part.df, level / 2) for part in (items, runs))
    over_items = t_items * np.sqrt(items.variance)
    items_only = t_items * np.sqrt(np.maximum(items.variance - both, 0))
    width: Values = np.maximum(np.hypot(items_only, t_runs * np.sqrt(runs.variance)), LEAST * over_items)
    return width


def p_value(est: float, items: Part, runs: Part, both: float) -> float:
    """Return the level at which the interval just touches 0."""

    def excess(log_level: float) -> float:
        return float(half_width(np.exp(log_level), items, runs, both)) - abs(est)

    lowest = float(np.log(SMALLEST_P))
    return float(np.exp(optimize.brentq(excess, lowest, 0))) if excess(lowest) > 0 else SMALLEST_P


def parts_of_variance(ours: Sequence[Values], theirs: Sequence[Values]) -> Parts:
    """Return the components of the variance of the mean difference over tasks; the arrays are those of `crossed`."""
    gaps = [a.mean(0) - b.mean(0) for a, b in zip(ours, theirs, strict=True)]
    items = [Part(float(gap.var(ddof=1)) / len(gap) / len(gaps) ** 2, len(gap) - 1) for gap in gaps]
    both = sum((run_by_item(task) for method in (ours, theirs) for task in method), 0.0) / len(gaps) ** 2
    return Parts(pooled(items), [run_part(method) for method in (ours, theirs)], both)


def run_part(method: Sequence[Values]) -> Part:
    """Return the variance of a method's mean score over its runs, and its degrees of freedom."""
    scores_K = np.mean([task.mean(1) for task in method], axis=0)
    return Part(float(scores_K.var(ddof=1)) / len(scores_K), len(scores_K) - 1)


def run_by_item(values_KN: Values) -> float:
    """Return the part of a method's variance in one task that is run x item."""
    runs, items = values_KN.shape
    rest = values_KN - values_KN.mean(1, keepdims=True) - values_KN.mean(0) + values_KN.mean()
    return float((rest**2).sum() / ((runs - 1) * (items - 1) * runs * items))


def pooled(parts: Sequence[Part]) -> Part:
    """Return the sum of variances, with Satterthwaite's degrees of freedom: at least the fewest of any part."""
    variances, dfs = (np.array(column) for column in zip(*parts, strict=True))
    total, squares_by_df = variances.sum(0), np.tensordot(1 / dfs, variances**2, 1)
    return Part(total, np.maximum(total**2 / np.maximum(squares_by_df, np.finfo(np.float64).tiny), dfs.min()))
