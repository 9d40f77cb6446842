"""Figures of a benchmark.

acc, macro-F1 and acc_norm are those of lm-evaluation-harness (EleutherAI, lm_eval/tasks/kobest): macro-F1 is the mean
of the classes' F1 over the classes that occur in gold or prediction.
"""

from collections.abc import Callable

import pandas as pd
from sklearn.metrics import f1_score

Figures = dict[str, float]
ITEM = ["task", "split", "item"]
"""Columns that name an item of a benchmark, in data/eval as in data/leaks.parquet."""


def figures(items: pd.DataFrame) -> Figures:
    """Return accuracy, macro_f1 and, where the task has it, acc_norm of one task's items."""
    found = {
        "accuracy": float(items["correct"].mean()),
        "macro_f1": float(f1_score(items["gold"], items["prediction"], average="macro")),
    }
    if items["correct_norm"].notna().all():
        found["acc_norm"] = float(items["correct_norm"].astype(bool).mean())
    return found


def floor(items: pd.DataFrame) -> Figures:
    """Return what always naming the most frequent class would reach."""
    constant = items.assign(prediction=items["gold"].mode()[0], correct_norm=None)
    return figures(constant.assign(correct=constant["gold"] == constant["prediction"]))


def by_task(items: pd.DataFrame, of: Callable[[pd.DataFrame], Figures] = figures) -> dict[str, dict[str, Figures]]:
    """Return figures by shots and task, and their plain mean over the tasks as the task `mean`.

    Beside the figures stand `n`, the items, and `truncated`, those of them that were longer than the model.
    """
    found: dict[str, dict[str, Figures]] = {}
    for (shots, task), group in items.groupby(["shots", "task"]):
        found.setdefault(f"{shots}-shot", {})[str(task)] = of(group) | counts(group)
    for tasks in found.values():
        both = {name: sum(task[name] for task in tasks.values()) / len(tasks) for name in ("accuracy", "macro_f1")}
        tasks["mean"] = both
    return found


def counts(items: pd.DataFrame) -> dict[str, int]:
    return {"n": len(items), "truncated": int(items["truncated"].sum())}


def without_leaks(items: pd.DataFrame, leaks: pd.DataFrame) -> dict[str, dict[str, Figures]]:
    """Return `by_task` of the items that no row has, for the tasks that have others, and the mean over all tasks.

    No mean where a task has none but leaked items: it would be one over fewer tasks.
    """
    known = pd.MultiIndex.from_frame(items[ITEM]).isin(pd.MultiIndex.from_frame(leaks[ITEM]))
    whole = set(items.loc[~known, "task"]) == set(items["task"])
    told = {*items.loc[known, "task"], *(["mean"] if whole else [])}
    if not known.any():
        return {}
    rest = by_task(items[~known])
    return {shots: {task: rest[shots][task] for task in rest[shots] if task in told} for shots in rest}
