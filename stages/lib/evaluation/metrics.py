"""The metrics of a benchmark: one entry of METRICS each, from which scores, intervals and plots follow.

accuracy, macro-F1 and acc_norm are those of lm-evaluation-harness (EleutherAI, lm_eval/tasks/kobest): macro-F1 is the
mean of the classes' F1 over the classes that occur in gold or prediction.

Dimension key: N items of a task, G gold class, A predicted class.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.evaluation.predictions import Classes, Predictions, of_one_task

Scores = dict[str, float]
Counts = NDArray[np.int64]
Values = NDArray[np.float64]
ITEM = ["task", "split", "item"]
"""Columns that name an item of a benchmark, in data/eval and in data/leaks.parquet."""


def accuracy(counts_GA: Counts) -> Values:
    """Return the share of right answers [...] of counts [..., G, A]."""
    share: Values = np.trace(counts_GA, axis1=-2, axis2=-1) / counts_GA.sum((-2, -1))
    return share


def macro_f1(counts_GA: Counts) -> Values:
    """Return the mean F1 [...] over the classes that occur in gold or prediction, of counts [..., G, A]."""
    right = np.diagonal(counts_GA, axis1=-2, axis2=-1)
    named = counts_GA.sum(-1) + counts_GA.sum(-2)
    mean: Values = (2 * right / np.maximum(named, 1)).sum(-1) / (named > 0).sum(-1)
    return mean


def accuracy_values(gold_N: Classes, prediction_N: Classes) -> Values:
    values: Values = (gold_N == prediction_N).astype(np.float64)
    return values


def macro_f1_values(gold_N: Classes, prediction_N: Classes) -> Values:
    """Return every item's value [N], whose mean is macro-F1 over the classes in gold or prediction."""
    values = []
    for one in np.union1d(gold_N, prediction_N):
        gold, named = gold_N == one, prediction_N == one
        values.append(ratio_values(2.0 * (gold & named), 1.0 * gold + named))
    mean: Values = np.mean(values, axis=0)
    return mean


def ratio_values(above_N: Values, below_N: Values) -> Values:
    """Return every item's value [N], whose mean is sum(above) / sum(below).

    It is the ratio plus the item's influence on it (the infinitesimal jackknife: Efron 1982, The Jackknife, the
    Bootstrap and Other Resampling Plans, chapter 6).
    """
    ratio = above_N.sum() / below_N.sum()
    values: Values = ratio + (above_N - ratio * below_N) / below_N.mean()
    return values


def chosen(answers: Predictions) -> tuple[Classes, Classes]:
    return answers.gold, answers.prediction


def right_by_character(answers: Predictions) -> tuple[Classes, Classes] | None:
    norm = answers.correct_norm
    return None if norm is None else (np.ones_like(norm), norm)


class Metric(NamedTuple):
    classes: Callable[[Predictions], tuple[Classes, Classes] | None]
    """Gold and predicted class of every item [N] as the metric sees them; None if the task has no such metric."""
    score: Callable[[Counts], Values]
    """From counts of items [..., G, A] to the metric [...]."""
    values: Callable[[Classes, Classes], Values]
    """From the classes to one value per item [N], whose mean is the metric."""
    every_task: bool = True
    """Whether every task has it; only then is there a mean over the tasks."""


METRICS = {
    "macro_f1": Metric(chosen, macro_f1, macro_f1_values),
    "accuracy": Metric(chosen, accuracy, accuracy_values),
    "acc_norm": Metric(right_by_character, accuracy, accuracy_values, every_task=False),
}
EVERYWHERE = tuple(name for name, metric in METRICS.items() if metric.every_task)


def classes_by_metric(answers: Predictions) -> dict[str, tuple[Classes, Classes]]:
    """Return gold and prediction [N] under each metric that the task has."""
    found = {name: metric.classes(answers) for name, metric in METRICS.items()}
    return {name: both for name, both in found.items() if both is not None}


def tabulate(*columns_N: Classes) -> Counts:
    """Return the counts [G, A, ...] of columns of classes 0, 1, ..., all axes of one length."""
    columns = np.array(columns_N, dtype=np.int64)
    shape = (int(columns.max()) + 1,) * len(columns)
    flat = np.bincount(np.ravel_multi_index(tuple(columns), shape), minlength=shape[0] ** len(columns))
    return flat.reshape(shape)


def scores(answers: Predictions) -> Scores:
    return {name: float(METRICS[name].score(tabulate(*both))) for name, both in classes_by_metric(answers).items()}


def majority_baseline(answers: Predictions) -> Scores:
    """Return what always naming the most frequent class scores; of equally frequent classes, the first."""
    most = np.full_like(answers.gold, np.bincount(answers.gold).argmax())
    return scores(Predictions(answers.gold, most, None))


def scores_by_task(items: pd.DataFrame, of: Callable[[Predictions], Scores] = scores) -> dict[str, dict[str, Scores]]:
    """Return scores by shots and task, and their plain mean over the tasks as the task `mean`.

    Beside the scores stand `n`, the number of items, and `truncated`, how many of them were longer than the model.
    """
    found: dict[str, dict[str, Scores]] = {}
    for (shots, task), group in items.groupby(["shots", "task"]):
        counts = {"n": len(group), "truncated": int(group["truncated"].sum())}
        found.setdefault(f"{shots}-shot", {})[str(task)] = of(of_one_task(group)) | counts
    for tasks in found.values():
        tasks["mean"] = {name: sum(task[name] for task in tasks.values()) / len(tasks) for name in EVERYWHERE}
    return found


def scores_without_leaks(items: pd.DataFrame, leaks: pd.DataFrame) -> dict[str, dict[str, Scores]]:
    """Return `scores_by_task` of the items that no row contains, for the tasks with leaked items, and the mean.

    There is no mean if all items of a task leak: it would be one over fewer tasks.
    """
    known = pd.MultiIndex.from_frame(items[ITEM]).isin(pd.MultiIndex.from_frame(leaks[ITEM]))
    whole = set(items.loc[~known, "task"]) == set(items["task"])
    shown = {*items.loc[known, "task"], *(["mean"] if whole else [])}
    if not known.any():
        return {}
    rest = scores_by_task(items[~known])
    return {shots: {task: found for task, found in tasks.items() if task in shown} for shots, tasks in rest.items()}
