"""How often the interval over runs and items contains the true difference, and how often a worthless method "beats".

    python -m benchmarks.coverage [WORLDS]

In a simulated world the truth is known: two methods that are equally good, whose runs vary, answer the same items. Of
the code under test, the simulator uses only what turns answers into an interval.

Dimension key: W worlds, K runs of one method, N items.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from benchmarks.measure import table
from stages.lib.evaluation.metrics import accuracy_values, macro_f1_values, ratio_values
from stages.lib.statistics.replicates import crossed

Values = NDArray[np.float64]
Rng = np.random.Generator
ITEMS, CHUNK = 400, 100
RUNS = ((2, 2), (3, 3), (5, 5), (3, 2), (2, 3), (5, 3))
RATIOS = (1, 0.3, 0.065, 0)
NOISES = (0, 1, 3)
CORRECT = 0.6
"""Mean accuracy of both methods."""
POSITIVE = 0.4
"""Share of the items whose gold class is 1."""
OWN, REST = 0.5, 0.3
"""Standard deviations: of a method's own effect on an item, and of a run's of the second method (run x item)."""


def standard(draws: Callable[..., Any], mean: float, sd: float) -> Callable[[Rng, Any], Values]:
    return lambda rng, size: (draws(rng, size) - mean) / sd


SHAPES = {
    "normal": standard(lambda rng, size: rng.normal(size=size), 0, 1),
    "t3": standard(lambda rng, size: rng.standard_t(3, size), 0, 3**0.5),
    "lognormal": standard(lambda rng, size: rng.lognormal(size=size), np.e**0.5, ((np.e - 1) * np.e) ** 0.5),
}
LENGTHS = {
    "lognormal": lambda rng, size: np.ceil(rng.lognormal(4, 1, size)),
    "Pareto": lambda rng, size: np.ceil(20 * (1 + rng.pareto(2, size))),
}


class Case(NamedTuple):
    runs: tuple[int, int]
    shape: str = "normal"
    """Distribution of the runs' effects."""
    ratio: float = 1
    """The first method's standard deviations over runs, as a share of the second's."""
    noise: float = 1
    """The second method's standard deviation over runs; 1 is the standard error of single runs over items."""
    shared: bool = False
    """Whether the first method's runs share one selection, as lucky or not as a run of the second."""


def run_effects(case: Case, size: int, rng: Rng) -> tuple[Values, Values]:
    """Return the effects [W, K] of the runs of both methods, with mean 0; the second method's have variance 1."""
    draw = SHAPES[case.shape]
    ours = case.ratio * draw(rng, (size, case.runs[0]))
    return ours + (draw(rng, (size, 1)) if case.shared else 0), draw(rng, (size, case.runs[1]))


def of_items(ratio: float, runs: int, own: float, size: int, rng: Rng) -> Values:
    """Return a method's effects [W, K, N] on the items, those of single runs included."""
    return own * rng.normal(size=(size, 1, ITEMS)) + ratio * REST * rng.normal(size=(size, runs, ITEMS))


def answers(case: Case, own: float, size: int, rng: Rng) -> Iterator[tuple[Any, list[Any]]]:
    """Yield for each world the gold classes [N], and whether each run of each method is correct [K, N].

    An answer is correct if easiness, effects on the item and skill are above 0 in sum; the skill of a run is such that
    its expected accuracy is `CORRECT` and the run's effect.
    """
    easiness = rng.normal(size=(size, 1, ITEMS))
    found = []
    for effects, ratio in zip(run_effects(case, size, rng), (case.ratio, 1), strict=True):
        spread = (1 + own**2 + (ratio * REST) ** 2) ** 0.5
        skill = spread * ndtri(accuracies(effects, case, own))
        found.append(easiness + of_items(ratio, effects.shape[1], own, size, rng) + skill[..., None] > 0)
    for gold, *correct in zip(rng.random((size, ITEMS)) < POSITIVE, *found, strict=True):
        yield gold.astype(int), correct


def accuracies(effects: Values, case: Case, own: float) -> Values:
    """Return the expected accuracies of runs; the items' standard error is that of a difference of single runs."""
    differing = np.arccos(1 / (1 + own**2 + REST**2)) / np.pi  # about the share of items
    return np.clip(CORRECT + case.noise * (differing / ITEMS) ** 0.5 * effects, 0.02, 0.98)


def population_f1(accuracy: Values) -> Values:
    """Return macro-F1 over infinitely many items."""
    both = [(share * accuracy, (1 - share) * (1 - accuracy), share) for share in (POSITIVE, 1 - POSITIVE)]
    return np.mean([2 * hit / (share + hit + false) for hit, false, share in both], axis=0)


@cache
def truth(case: Case, own: float, score: Callable[[Values], Values]) -> float:
    """Return the true difference, which is not quite 0 if the score is not linear in accuracy."""
    many = run_effects(case._replace(runs=(1, 1)), 10**5, np.random.default_rng(1))
    ours, theirs = (float(score(accuracies(effects, case, own)).mean()) for effects in many)
    return ours - theirs


def answered(case: Case, size: int, rng: Rng, values: Any, score: Any, own: float = OWN) -> Iterator[dict[str, float]]:
    """Yield the intervals of a score, minus the truth."""
    true = truth(case, own, score)
    for gold, methods in answers(case, own, size, rng):
        ours, theirs = (np.array([values(gold, np.where(run, gold, 1 - gold)) for run in one]) for one in methods)
        found = crossed([ours], [theirs])
        yield {"lo": found["lo"] - true, "hi": found["hi"] - true}


def losses(case: Case, size: int, rng: Rng, lengths: str) -> Iterator[dict[str, float]]:
    """Yield the intervals of held-out loss, whose true difference is 0."""
    tokens = LENGTHS[lengths](rng, (size, ITEMS))
    error = (2 * (OWN**2 + REST**2) * (tokens**2).sum(1)) ** 0.5 / tokens.sum(1)
    found = [
        2 + of_items(ratio, effects.shape[1], OWN, size, rng) + (case.noise * error[:, None] * effects)[..., None]
        for effects, ratio in zip(run_effects(case, size, rng), (case.ratio, 1), strict=True)
    ]
    for count, *methods in zip(tokens, *found, strict=True):
        ours, theirs = (np.array([ratio_values(run * count, count) for run in one]) for one in methods)
        yield crossed([ours], [theirs])


WORLDS: dict[str, Callable[[Case, int, Rng], Iterator[dict[str, float]]]] = {
    "accuracy": lambda *of: answered(*of, accuracy_values, lambda accuracy: accuracy),
    "accuracy, items alike": lambda *of: answered(*of, accuracy_values, lambda accuracy: accuracy, own=0),
    "macro-F1": lambda *of: answered(*of, macro_f1_values, population_f1),
    "loss, lognormal": lambda *of: losses(*of, "lognormal"),
    "loss, Pareto": lambda *of: losses(*of, "Pareto"),
}


def intervals(world: str, case: Case, worlds: int) -> NDArray[np.float64]:
    """Return the intervals [W, 2] in simulated worlds where the truth is 0."""
    rng = np.random.default_rng([worlds, *repr((world, case)).encode()])
    chunks = [min(CHUNK, worlds - start) for start in range(0, worlds, CHUNK)]
    return np.array([(one["lo"], one["hi"]) for size in chunks for one in WORLDS[world](case, size, rng)])


def coverage(world: str, case: Case, worlds: int) -> float:
    lo, hi = intervals(world, case, worlds).T
    return float(np.mean((lo <= 0) & (hi >= 0)))


def coverage_row(runs: tuple[int, int], shape: str, worlds: int) -> dict[str, str]:
    """Return the lowest and the highest coverage over ratios and noises, by world."""
    cases = [Case(runs, shape, ratio, noise) for noise in NOISES for ratio in (RATIOS if noise else (1, 0))]
    row = {"runs": f"{runs[0]}, {runs[1]}", "effects of runs": shape}
    for world in WORLDS:
        shares = [coverage(world, case, worlds) for case in cases]
        row[world] = f"{min(shares):.3f} to {max(shares):.3f}"
    return row


def beats(runs: int, shared: bool, worlds: int) -> float:
    """Return how often a worthless method has a significantly lower loss than random, both as noisy as on real rows."""
    case = Case((runs, runs), ratio=0.065 if shared else 1, noise=2.3, shared=shared)
    return float(np.mean(intervals("loss, lognormal", case, worlds)[:, 1] < 0))


def beats_row(runs: int, worlds: int) -> dict[str, Any]:
    ways = {"a selection for each run": False, "one selection for all runs": True}
    return {"runs of each": runs, **{name: f"{beats(runs, shared, worlds):.3f}" for name, shared in ways.items()}}


def main(arguments: list[str]) -> None:
    worlds = int(*arguments) if arguments else 1_000
    print(f"{table([coverage_row(runs, shape, worlds) for shape in SHAPES for runs in RUNS])}\n")
    print(table([beats_row(runs, worlds) for runs in (2, 3, 5, 10)]))


if __name__ == "__main__":
    main(sys.argv[1:])
