"""Does the method help? An interval over runs and items together.

Two models trained on different samples or with different seeds differ, and with enough items any such difference is
"significant". So several runs of each method answer the same items. A two-way analysis of variance, with runs nested in
the method and items crossed with both, gives the variance of the difference between the methods (Searle, Casella and
McCulloch 1992, Variance Components, chapter 4):

    over items + over runs - run x item, which both contain

Each method has its own variance over runs (Welch 1947, Biometrika 34, 28-35), because a method that draws no rows
varies less than one that does. The degrees of freedom are those of Satterthwaite 1946, Biometrics Bulletin 2(6),
110-114. No component is taken to be negative.

Accuracy is a mean over items. Macro-F1 and loss per token are made one (`metrics.ratio_values`): each item's value is
the score plus the item's influence on it.

Dimension key: K runs of one method, N items of one task.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stages.lib.statistics import power

Values = NDArray[np.float64]
ROUNDING = 1e-24
"""A variance below this comes from floating-point sums: all runs gave the same answers."""


def crossed(ours: Sequence[Values], theirs: Sequence[Values]) -> dict[str, float]:
    """Return ours minus theirs in the unweighted mean over tasks: est, lo, hi, p, `mde` and `run_sd`.

    Each sequence has one array [K, N] per task, with the same K >= 2 runs in each task and the same items in both
    sequences. `run_sd` is the standard deviation of a run's score within its method, without the noise of the items.
    """
    tasks = len(ours)
    gaps = [a.mean(0) - b.mean(0) for a, b in zip(ours, theirs, strict=True)]
    items = [(float(gap.var(ddof=1)) / len(gap) / tasks**2, len(gap) - 1) for gap in gaps]
    among = [run_part(method) for method in (ours, theirs)]
    rest = [part for method in (ours, theirs) for part in rest_parts(method)]
    over_items, over_runs, both = (sum(v for v, _ in parts) for parts in (items, among, rest))

    est = sum(float(gap.mean()) for gap in gaps) / tasks
    variance = float(power.variance_of_difference(over_items, np.array(over_runs), both))
    if variance < ROUNDING:
        return {"est": est, "lo": est, "hi": est, "p": 1.0, "mde": 0.0, "run_sd": 0.0}
    df = variance**2 / sum(v**2 / df for v, df in [*items, *among, *rest])
    runs = sum(1 / len(method[0]) for method in (ours, theirs))
    return interval(est, variance**0.5, df) | {
        "mde": power.mde_of_runs(items, among, both),
        "run_sd": (max(0.0, over_runs - both) / runs) ** 0.5,
    }


def run_part(method: Sequence[Values]) -> power.Part:
    """Return the variance of a method's mean score over its runs, and its degrees of freedom."""
    scores_K = np.mean([task.mean(1) for task in method], axis=0)
    return float(scores_K.var(ddof=1)) / len(scores_K), len(scores_K) - 1


def rest_parts(method: Sequence[Values]) -> list[power.Part]:
    """Return the part of that variance that is run x item, and its degrees of freedom, for every task."""
    found = []
    for values_KN in method:
        runs, items = values_KN.shape
        rest = values_KN - values_KN.mean(1, keepdims=True) - values_KN.mean(0) + values_KN.mean()
        df = (runs - 1) * (items - 1)
        found.append((float((rest**2).sum()) / df / runs / items / len(method) ** 2, df))
    return found


def interval(est: float, error: float, df: float) -> dict[str, float]:
    """Return est, its 95 % interval and p, by Student's t."""
    half = error * float(stats.t.ppf(1 - power.LEVEL / 2, df))
    return {"est": est, "lo": est - half, "hi": est + half, "p": float(2 * stats.t.sf(abs(est) / error, df))}
