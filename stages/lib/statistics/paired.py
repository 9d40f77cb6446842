"""Do two models differ? Intervals and tests over the items that both answered.

The answers of two models to one task are a small table of counts, gold x prediction x the other's prediction. Items are
resampled by drawing counts. Dimension key: R resamples, G gold class, A prediction, B the other's prediction,
N held-out rows.

- Interval: percentiles of the paired bootstrap (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters
  13 and 16). The score is computed again in every resample.
- p: paired randomisation test (Noreen 1989, Computer-Intensive Methods for Testing Hypotheses, chapter 2). If the
  models do not differ, either could have given either answer to an item.
- Check for accuracy: McNemar's test with mid-p (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology
  13:91, equation 6).
- Several tasks: Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.

None of these includes the noise of training, that is, how much another seed would have changed a model: `replicates`
does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stages.lib.statistics import power

Counts = NDArray[np.int64]
Values = NDArray[np.float64]
Score = Callable[[Counts], Values]
LEVELS = (0.025, 0.975)
FEW = 10
"""Items on which two models must differ before an interval or a test means anything."""


@dataclass(frozen=True)
class Draws:
    """A difference, and what it is in random resamples."""

    est: float
    resampled: Values
    """The difference in resamples of the items [R]."""
    swapped: Values
    """The difference after the models exchanged their answers to random items [R]."""
    discordant: int
    """Items on which the two models differ."""


def score_difference(score: Score, counts_GAB: Counts) -> Values:
    """Return ours minus theirs [...] from counts [..., G, A, B]."""
    return score(counts_GAB.sum(-1)) - score(counts_GAB.sum(-2))


def resample(counts_GAB: Counts, times: int, rng: np.random.Generator) -> Counts:
    """Return the counts [R, G, A, B] of resamples of the same size, drawn with replacement."""
    items = int(counts_GAB.sum())
    return rng.multinomial(items, counts_GAB.ravel() / items, size=times).reshape(times, *counts_GAB.shape)


def swap(counts_GAB: Counts, times: int, rng: np.random.Generator) -> Counts:
    """Return the counts [R, G, A, B] after the models exchanged their answers to each item with probability 0.5."""
    a, b = np.indices(counts_GAB.shape)[1:]
    either = np.where(a < b, counts_GAB + counts_GAB.swapaxes(-1, -2), 0)
    heads = rng.binomial(either, 0.5, size=(times, *either.shape))
    return heads + (either - heads).swapaxes(-1, -2) + np.where(a == b, counts_GAB, 0)


def draw_items(
    counts_GAB: Counts, score: Score, resamples: int, randomisations: int, rng: np.random.Generator
) -> Draws:
    """Return the difference in a score on one task."""
    return Draws(
        est=float(score_difference(score, counts_GAB)),
        resampled=score_difference(score, resample(counts_GAB, resamples, rng)),
        swapped=score_difference(score, swap(counts_GAB, randomisations, rng)),
        discordant=int(counts_GAB.sum() - np.einsum("gaa->", counts_GAB)),
    )


def draw_rows(ours: Values, theirs: Values, tokens: Counts, resamples: int, randomisations: int, seed: int) -> Draws:
    """Return the difference in loss per token, from nll [N] in nats: a ratio of sums. Rows are resampled."""
    rng = np.random.default_rng(seed)
    gap, rows = ours - theirs, len(tokens)
    places = (rng.integers(rows, size=rows) for _ in range(resamples))
    coins = (rng.choice((-1, 1), rows) for _ in range(randomisations))
    return Draws(
        est=float(gap.sum() / tokens.sum()),
        resampled=np.array([gap[place].sum() / tokens[place].sum() for place in places]),
        swapped=np.array([(gap * coin).sum() / tokens.sum() for coin in coins]),
        discordant=int(np.count_nonzero(gap)),
    )


def mean(draws: Sequence[Draws]) -> Draws:
    """Return the unweighted mean over tasks, which were drawn independently."""
    return Draws(
        est=sum(one.est for one in draws) / len(draws),
        resampled=np.mean([one.resampled for one in draws], axis=0),
        swapped=np.mean([one.swapped for one in draws], axis=0),
        discordant=sum(one.discordant for one in draws),
    )


def estimate(draws: Draws) -> dict[str, float]:
    """Return est, its 95 % interval lo to hi, p and `mde`, the minimum detectable effect with these items.

    If the models differ on too few items, there is `too_few`: 1 instead of `mde`.
    """
    lo, hi = np.quantile(draws.resampled, LEVELS)
    extreme = np.count_nonzero(np.abs(draws.swapped) >= abs(draws.est) - 1e-12)
    found = {
        "est": draws.est,
        "lo": float(lo),
        "hi": float(hi),
        "p": float((1 + extreme) / (1 + len(draws.swapped))),
    }
    few = draws.discordant < FEW
    return found | ({"too_few": 1} if few else {"mde": power.mde_of_items(float(np.std(draws.resampled)))})


def mcnemar(counts_GAB: Counts) -> float:
    """Return the mid-p of McNemar's test of whether two models are correct equally often."""
    ours = int(np.einsum("gga->", counts_GAB) - np.einsum("ggg->", counts_GAB))
    theirs = int(np.einsum("gag->", counts_GAB) - np.einsum("ggg->", counts_GAB))
    fewer, null = min(ours, theirs), stats.binom(ours + theirs, 0.5)
    return float(2 * null.cdf(fewer) - null.pmf(fewer))


def adjust(estimates: dict[str, dict[str, dict[str, float]]]) -> None:
    """Add `p_holm` to every estimates[task][metric]; the tasks of one metric are a family."""
    for metric in {metric for task in estimates.values() for metric in task}:
        family = [task[metric] for task in estimates.values() if metric in task]
        for one, p in zip(family, holm([one["p"] for one in family]), strict=True):
            one["p_holm"] = p


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values of one family, adjusted so that the chance of any false finding is at most the level."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return [float(value) for value in adjusted]
