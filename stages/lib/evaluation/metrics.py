"""The metrics of a benchmark. Each is one entry of METRICS; scores, intervals and plots follow from it.

Accuracy, macro-F1 and acc_norm are those of lm-evaluation-harness (EleutherAI, lm_eval/tasks/kobest). Macro-F1 is the
mean F1 of the classes that occur in gold or prediction.

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
"""Columns that identify a benchmark item, in data/eval and in data/leaks.parquet."""


def accuracy(counts_GA: Counts) -> Values:
    """Return the share of correct answers [...] from counts [..., G, A]."""
    share: Values = np.trace(counts_GA, axis1=-2, axis2=-1) / counts_GA.sum((-2, -1))
    return share


def macro_f1(counts_GA: Counts) -> Values:
    """Return the mean F1 [...] of the classes that occur in gold or prediction, from counts [..., G, A]."""
    correct = np.diagonal(counts_GA, axis1=-2, axis2=-1)
    occurrences = counts_GA.sum(-1) + counts_GA.sum(-2)
    mean: Values = (2 * correct / np.maximum(occurrences, 1)).sum(-1) / (occurrences > 0).sum(-1)
    return mean


def accuracy_values(gold_N: Classes, prediction_N: Classes) -> Values:
    values: Values = (gold_N == prediction_N).astype(np.float64)
    return values


def macro_f1_values(gold_N: Classes, prediction_N: Classes) -> Values:
    """Return one value per item [N], whose mean is macro-F1 over the classes in gold or prediction."""
    by_class = []
    for label in np.union1d(gold_N, prediction_N):
        is_gold, is_predicted = gold_N == label, prediction_N == label
        by_class.append(ratio_values(2.0 * (is_gold & is_predicted), 1.0 * is_gold + is_predicted))
    values: Values = np.mean(by_class, axis=0)
    return values


def ratio_values(numerator_N: Values, denominator_N: Values) -> Values:
    """Return one value per item [N], whose mean is sum(numerator) / sum(denominator).

    A value is the ratio plus the item's influence on it (the infinitesimal jackknife: Efron 1982, The Jackknife, the
    Bootstrap and Other Resampling Plans, chapter 6).
    """
    ratio = numerator_N.sum() / denominator_N.sum()
    values: Values = ratio + (numerator_N - ratio * denominator_N) / denominator_N.mean()
    return values


def chosen_classes(answers: Predictions) -> tuple[Classes, Classes]:
    return answers.gold, answers.prediction


def correctness(answers: Predictions) -> tuple[Classes, Classes]:
    """Return 1 and whether the answer is correct: two wrong answers to an item are equal, whatever their classes."""
    correct_N = (answers.gold == answers.prediction).astype(np.int64)
    return np.ones_like(correct_N), correct_N


def correctness_by_character(answers: Predictions) -> tuple[Classes, Classes] | None:
    """Return the same for the choice by likelihood per character."""
    correct_N = answers.correct_norm
    return None if correct_N is None else (np.ones_like(correct_N), correct_N)


class Metric(NamedTuple):
    classes: Callable[[Predictions], tuple[Classes, Classes] | None]
    """Gold and predicted class of every item [N] as the metric sees them; None if the task lacks the metric."""
    score: Callable[[Counts], Values]
    """From counts of items [..., G, A] to the metric [...]."""
    values: Callable[[Classes, Classes], Values]
    """From the classes to one value per item [N], whose mean is the metric."""
    every_task: bool = True
    """Whether every task has it. Only such a metric has a mean over tasks and a column in the plot of scores."""


METRICS = {
    "macro_f1": Metric(chosen_classes, macro_f1, macro_f1_values),
    "accuracy": Metric(correctness, accuracy, accuracy_values),
    "acc_norm": Metric(correctness_by_character, accuracy, accuracy_values, every_task=False),
}


def metrics_of_every_task() -> list[str]:
    return [name for name, metric in METRICS.items() if metric.every_task]


def classes_by_metric(answers: Predictions) -> dict[str, tuple[Classes, Classes]]:
    """Return gold and prediction [N] as each of the task's metrics sees them."""
    found = {name: metric.classes(answers) for name, metric in METRICS.items()}
    return {name: both for name, both in found.items() if both is not None}


def tabulate(*columns_N: Classes) -> Counts:
    """Return the counts [G, A, ...] of columns of classes 0, 1, ...; all axes have the same length."""
    columns = np.array(columns_N, dtype=np.int64)
    shape = (int(columns.max()) + 1,) * len(columns)
    flat = np.bincount(np.ravel_multi_index(tuple(columns), shape), minlength=shape[0] ** len(columns))
    return flat.reshape(shape)


def scores(answers: Predictions) -> Scores:
    return {name: float(METRICS[name].score(tabulate(*both))) for name, both in classes_by_metric(answers).items()}


def majority_baseline(answers: Predictions) -> Scores:
    """Return the scores of a model that always predicts the most frequent class; of a tie, the first."""
    majority_N = np.full_like(answers.gold, np.bincount(answers.gold).argmax())
    return scores(Predictions(answers.gold, majority_N, None))


def scores_by_task(items: pd.DataFrame, of: Callable[[Predictions], Scores] = scores) -> dict[str, dict[str, Scores]]:
    """Return scores by shots and task, and their unweighted mean over the tasks as the task `mean`.

    Each task also has `n`, the number of its items, and `truncated`, how many of them did not fit into the model.
    """
    found: dict[str, dict[str, Scores]] = {}
    everywhere = metrics_of_every_task()
    for (shots, task), group in items.groupby(["shots", "task"]):
        counts = {"n": len(group), "truncated": int(group["truncated"].sum())}
        found.setdefault(f"{shots}-shot", {})[str(task)] = of(of_one_task(group)) | counts
    for tasks in found.values():
        tasks["mean"] = {name: sum(task[name] for task in tasks.values()) / len(tasks) for name in everywhere}
    return found


def scores_without_leaks(items: pd.DataFrame, leaks: pd.DataFrame) -> dict[str, dict[str, Scores]]:
    """Return `scores_by_task` over the items that no row contains: the tasks that have leaked items, and the mean.

    There is no mean if every item of a task leaked, because it would cover fewer tasks.
    """
    leaked = pd.MultiIndex.from_frame(items[ITEM]).isin(pd.MultiIndex.from_frame(leaks[ITEM]))
    if not leaked.any():
        return {}
    complete = set(items.loc[~leaked, "task"]) == set(items["task"])
    shown = {*items.loc[leaked, "task"], *(["mean"] if complete else [])}
    clean = scores_by_task(items[~leaked])
    return {shots: {task: found for task, found in tasks.items() if task in shown} for shots, tasks in clean.items()}
