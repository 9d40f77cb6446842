"""How two methods differ, over their runs and the items, from what each run answered (metrics/items/<arm>.json)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.lib.core.errors import Stop
from stages.lib.evaluation.predictions import EVERYWHERE, outcomes
from stages.lib.statistics import paired
from stages.lib.statistics import replicates as runs

VALUES = {"accuracy": runs.accuracy_values, "acc_norm": runs.accuracy_values, "macro_f1": runs.macro_f1_values}


@dataclass(frozen=True)
class Answered:
    """One task, or the held-out rows, by the runs of two methods: values whose mean over items is the statistic."""

    ours: runs.Values
    theirs: runs.Values
    discordant: int
    """Items on which not all runs of both agree."""


def difference(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """Return ours minus theirs by shots, task and metric, and in held-out loss, from what the runs answered."""
    require_same_answers(ours + theirs)
    scores: dict[str, Any] = {}
    for shots, tasks in ours[0]["items"].items():
        found = {
            task: {metric: benchmark(ours, theirs, shots, task, metric) for metric in outcomes(one)}
            for task, one in tasks.items()
        }
        told = {task: {metric: tell([one]) for metric, one in metrics.items()} for task, metrics in found.items()}
        paired.adjust(told)
        mean = {metric: tell([metrics[metric] for metrics in found.values()]) for metric in EVERYWHERE}
        scores[shots] = told | {"mean": mean}
    rows = sum(count > 0 for count in ours[0]["held_out"]["tokens"].values())
    return {"scores": scores, "held_out_loss": {"all": tell([held_out(ours, theirs)])} if rows > 1 else {}}


def tell(tasks: list[Answered]) -> dict[str, float]:
    found = runs.crossed([task.ours for task in tasks], [task.theirs for task in tasks])
    if sum(task.discordant for task in tasks) < paired.FEW:
        del found["resolves"]
        found["too_few"] = 1
    return found


def benchmark(ours: list[Any], theirs: list[Any], shots: str, task: str, metric: str) -> Answered:
    found = [outcomes(one["items"][shots][task])[metric] for one in ours + theirs]
    values = np.array([VALUES[metric](*one) for one in found])
    return Answered(values[: len(ours)], values[len(ours) :], disagreement(np.array([one for _, one in found])))


def held_out(ours: list[Any], theirs: list[Any]) -> Answered:
    counts = {row: count for row, count in sorted(ours[0]["held_out"]["tokens"].items()) if count}
    tokens = np.array(list(counts.values()), dtype=np.float64)
    nll = np.array([[one["held_out"]["nll"][row] for row in counts] for one in ours + theirs])
    values = np.array([runs.ratio_values(one, tokens) for one in nll])
    return Answered(values[: len(ours)], values[len(ours) :], disagreement(nll))


def disagreement(answers_KN: NDArray[Any]) -> int:
    return int((answers_KN != answers_KN[0]).any(0).sum())


def require_same_answers(group: list[Any]) -> None:
    def asked(one: Any) -> Any:
        gold = {shots: {task: d["gold"] for task, d in tasks.items()} for shots, tasks in one["items"].items()}
        return gold, one["held_out"]["tokens"]

    if any(asked(one) != asked(group[0]) for one in group):
        raise Stop("metrics/items: runs answered different items or held-out rows; run `dvc repro`")
