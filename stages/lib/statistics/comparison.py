"""How two models differ over items, and how two methods differ over runs and items, by shots, task and metric.

Dimension key: K runs of one method, N items of one task.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section, Seed
from stages.lib.evaluation.marks import shares_of
from stages.lib.evaluation.metrics import (
    METRICS,
    accuracy,
    classes_by_metric,
    metrics_of_every_task,
    ratio_values,
    tabulate,
)
from stages.lib.evaluation.predictions import ByTask, Predictions
from stages.lib.statistics import paired, power, replicates

Estimate = dict[str, float]
T = TypeVar("T")


class Resampling(Section):
    resamples: Positive
    """Resamples of the items, for an interval."""
    randomisations: Positive
    """Random exchanges of answers, for a p. The smallest possible p is 1 / (randomisations + 1)."""
    seed: Seed


class Run(NamedTuple):
    """The answers of one run, as in metrics/items/<arm>.json."""

    answers: ByTask
    tokens: dict[str, int]
    """Answer tokens by held-out row."""
    nll: dict[str, float]
    """In nats, by held-out row."""
    marks: pd.DataFrame
    """Of its answers to the prompts (`answers.mark_answers`)."""
    margins: dict[str, float]
    """Of a preference: by held-out pair, in nats."""


class RunValues(NamedTuple):
    """One task, or the held-out rows, as the runs of two methods answered it."""

    ours: NDArray[np.float64]
    """Values [K, N] whose mean over items is the score."""
    theirs: NDArray[np.float64]
    discordant: int
    """Items on which the runs do not all agree."""


def compare_models(settings: Resampling, ours: ByTask, theirs: ByTask) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return ours minus theirs for two models that answered the same items (see `paired`)."""
    found: dict[str, Any] = {}
    for shots, tasks in ours.items():
        tables = {task: counts_by_metric(tasks[task], theirs[shots][task]) for task in tasks}
        drawn = {
            task: {metric: draw(settings, f"{shots} {task}", metric, counts) for metric, counts in metrics.items()}
            for task, metrics in tables.items()
        }
        found[shots] = with_mean(drawn, lambda draws: paired.estimate(paired.mean(draws)))
        for task, metrics in tables.items():
            for metric in [name for name in metrics if METRICS[name].score is accuracy]:
                found[shots][task][metric]["p_mcnemar"] = paired.mcnemar(metrics[metric])
    return found


def counts_by_metric(ours: Predictions, theirs: Predictions) -> dict[str, paired.Counts]:
    """Return the counts [G, A, B] of one task by metric."""
    other = classes_by_metric(theirs)
    return {metric: tabulate(gold, one, other[metric][1]) for metric, (gold, one) in classes_by_metric(ours).items()}


def draw(settings: Resampling, name: str, metric: str, counts_GAB: paired.Counts) -> paired.Draws:
    """Return the draws of one task. Each task has its own generator, so another task changes no number."""
    rng = np.random.default_rng([settings.seed, *name.encode()])
    return paired.draw_items(counts_GAB, METRICS[metric].score, settings.resamples, settings.randomisations, rng)


def compare_losses(settings: Resampling, rows: pd.DataFrame, other: pd.Series) -> dict[str, Estimate]:
    """Return our held-out loss minus the other model's, in nats per answer token: of `all` rows and per source."""
    return {
        name: estimate_ratio(
            settings, group["nll"].to_numpy(), other[group.index].to_numpy(), group["tokens"].to_numpy()
        )
        for name, group in rows_with_answers(rows).items()
    }


def compare_answers(settings: Resampling, ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, Estimate]:
    """Return our shares minus the other model's: of prompts and constraints followed, and of right final answers."""
    require_same_prompts([ours, theirs])
    others = shares_of(theirs)
    return {
        name: estimate_ratio(settings, right_N, others[name][0], counts_N)
        for name, (right_N, counts_N) in shares_of(ours).items()
    }


def estimate_ratio(
    settings: Resampling, ours_N: NDArray[np.float64], theirs_N: NDArray[np.float64], counts_N: NDArray[Any]
) -> Estimate:
    """Return ours minus theirs in a ratio of sums, such as nats per token."""
    sizes = settings.resamples, settings.randomisations, settings.seed
    return paired.estimate(paired.draw_rows(ours_N, theirs_N, counts_N, *sizes))


def rows_with_answers(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the held-out rows that have an answer token: `all`, and those of every source that has any."""
    groups = {"all": rows, **{str(source): group for source, group in rows.groupby("source")}}
    return {name: group[group["tokens"] > 0] for name, group in groups.items() if group["tokens"].sum()}


def compare_methods(ours: list[Run], theirs: list[Run]) -> dict[str, Any]:
    """Return ours minus theirs for two methods with several runs each (see `replicates`).

    In scores, held-out loss, answers and, if the runs are preferences, held-out margins.
    """
    require_same_questions(ours + theirs)
    found = {}
    for shots, tasks in ours[0].answers.items():
        values = {
            task: {metric: on_items(ours, theirs, shots, task, metric) for metric in classes_by_metric(answers)}
            for task, answers in tasks.items()
        }
        found[shots] = with_mean(values, over_runs)
    rows = sum(count > 0 for count in ours[0].tokens.values())
    shares = [name for name, (right_N, _) in shares_of(ours[0].marks).items() if len(right_N) > 1]
    return {
        "scores": found,
        "held_out_loss": {"all": over_runs([on_held_out(ours, theirs)])} if rows > 1 else {},
        "answers": {name: over_runs([on_prompts(ours, theirs, name)]) for name in shares},
        **({"margin": over_runs([on_pairs(ours, theirs)])} if len(ours[0].margins) > 1 else {}),
    }


def over_runs(tasks: Sequence[RunValues]) -> Estimate:
    ours, theirs = [task.ours for task in tasks], [task.theirs for task in tasks]
    found = replicates.crossed(ours, theirs)
    if sum(task.discordant for task in tasks) < paired.FEW:
        return found | {"too_few": 1}
    return found | {"mde": power.mde_of_runs(replicates.parts_of_variance(ours, theirs))}


def on_items(ours: list[Run], theirs: list[Run], shots: str, task: str, metric: str) -> RunValues:
    found = [classes_by_metric(run.answers[shots][task])[metric] for run in ours + theirs]
    return run_values(len(ours), [METRICS[metric].values(*both) for both in found], [one for _, one in found])


def on_held_out(ours: list[Run], theirs: list[Run]) -> RunValues:
    counts = {row: count for row, count in sorted(ours[0].tokens.items()) if count}
    tokens_N = np.array(list(counts.values()), dtype=np.float64)
    nll_KN = np.array([[run.nll[row] for row in counts] for run in ours + theirs])
    return run_values(len(ours), [ratio_values(nll_N, tokens_N) for nll_N in nll_KN], nll_KN)


def on_prompts(ours: list[Run], theirs: list[Run], share: str) -> RunValues:
    shares = [shares_of(run.marks)[share] for run in ours + theirs]
    return run_values(len(ours), [ratio_values(*both) for both in shares], [right_N for right_N, _ in shares])


def on_pairs(ours: list[Run], theirs: list[Run]) -> RunValues:
    margins_KN = [[run.margins[pair] for pair in sorted(ours[0].margins)] for run in ours + theirs]
    return run_values(len(ours), margins_KN, margins_KN)


def run_values(ours: int, values_KN: Any, answers_KN: Any) -> RunValues:
    """Return the values of all runs, of which the first `ours` are ours; they come from these answers."""
    values, answers = np.array(values_KN, dtype=np.float64), np.array(answers_KN)
    return RunValues(values[:ours], values[ours:], int((answers != answers[0]).any(0).sum()))


def require_same_questions(runs: list[Run]) -> None:
    def questions(run: Run) -> Any:
        gold = {s: {task: one.gold.tolist() for task, one in tasks.items()} for s, tasks in run.answers.items()}
        return gold, run.tokens, run.margins.keys()

    if any(questions(run) != questions(runs[0]) for run in runs):
        raise UserError("metrics/items: the runs have different items, held-out rows or pairs; run `dvc repro`")
    require_same_prompts([run.marks for run in runs])


def require_same_prompts(marks: list[pd.DataFrame]) -> None:
    if any(not one[["id", "constraints"]].equals(marks[0][["id", "constraints"]]) for one in marks):
        raise UserError("data/answers: two models answered different prompts; run `dvc repro`")


def with_mean(found: dict[str, dict[str, T]], of: Callable[[list[T]], Estimate]) -> dict[str, dict[str, Estimate]]:
    """Return an estimate for every task and metric, with p adjusted over the tasks, and one for the `mean` of tasks."""
    estimates = {task: {metric: of([one]) for metric, one in metrics.items()} for task, metrics in found.items()}
    paired.adjust(estimates)
    everywhere = metrics_of_every_task()
    return estimates | {"mean": {metric: of([metrics[metric] for metrics in found.values()]) for metric in everywhere}}
