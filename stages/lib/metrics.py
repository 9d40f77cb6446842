"""Figures of a benchmark, and their differences.

acc, macro-F1 and acc_norm are those of lm-evaluation-harness (EleutherAI, lm_eval/tasks/kobest): macro-F1 is the mean
of the classes' F1 over the classes that occur in gold or prediction.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd
from sklearn.metrics import f1_score

Figures = dict[str, float]


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
    """Return figures by shots and task, and their plain mean over the tasks as the task `mean`."""
    found: dict[str, dict[str, Figures]] = {}
    for (shots, task), group in items.groupby(["shots", "task"]):
        found.setdefault(f"{shots}-shot", {})[str(task)] = of(group) | {"n": len(group)}
    for tasks in found.values():
        both = {name: sum(task[name] for task in tasks.values()) / len(tasks) for name in ("accuracy", "macro_f1")}
        tasks["mean"] = both
    return found


def differences(arm: Any, other: Any) -> Any:
    """Return arm minus other, figure by figure, as {"est": difference}; a count is no figure."""
    if isinstance(arm, dict):
        return {key: differences(arm[key], other[key]) for key in arm if not isinstance(arm[key], int)}
    return {"est": arm - other}
