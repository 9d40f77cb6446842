"""How far a judge agrees with itself when it marks the same rows twice.

Exact agreement flatters a judge that gives most rows one mark, so none of these measures uses it.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

STEPS = 2
"""Steps of a mark for the weighted kappa: marks are rounded to halves."""
RESAMPLES = 2000
Marks = NDArray[np.float64]


def weighted_kappa(first: Marks, again: Marks) -> float | None:
    """Return Cohen's kappa with quadratic weights (Cohen 1968) of marks from 0 to 10 [N], None if it is undefined."""
    from sklearn.metrics import cohen_kappa_score

    grid = list(range(10 * STEPS + 1))  # all of them, so that weights follow the marks and not their ranks
    one, two = (np.round(marks * STEPS).astype(int) for marks in (first, again))
    if len(np.union1d(one, two)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(cohen_kappa_score(one, two, labels=grid, weights="quadratic"))


def icc(first: Marks, again: Marks) -> float | None:
    """Return the intraclass correlation of single marks [N], None if all are equal: ICC(1, 1) of Shrout and Fleiss
    (1979), the share of the marks' variance that is due to the rows."""
    marks = np.stack([first, again], axis=1)
    if len(marks) < 2 or np.ptp(marks) == 0:
        return None
    between = 2 * marks.mean(axis=1).var(ddof=1)
    within = np.mean((first - again) ** 2) / 2
    return float((between - within) / (between + within))


def kept_overlap(first: Marks, again: Marks, least: float, seed: int = 1) -> dict[str, float] | None:
    """Return the Jaccard overlap of the rows with at least this mark: est, lo and hi of its 95 % interval over rows.

    None if no row has such a mark. The interval is the percentile bootstrap's (Efron 1979).
    """
    both = int(((first >= least) & (again >= least)).sum())
    either = int(((first >= least) | (again >= least)).sum())
    if not either:
        return None
    rows = len(first)
    shares = [both / rows, (either - both) / rows, (rows - either) / rows]
    drawn = np.random.default_rng(seed).multinomial(rows, shares, RESAMPLES)[:, :2]
    drawn = drawn[drawn.sum(axis=1) > 0]
    low, high = np.quantile(drawn[:, 0] / drawn.sum(axis=1), [0.025, 0.975])
    return {"est": both / either, "lo": float(low), "hi": float(high)}
