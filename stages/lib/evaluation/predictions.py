"""What a model answered, item by item: as arrays, and in a form short enough for git (metrics/items/<arm>.json).

In the file, each task has one string of digits per column, in item order: the gold class, the predicted class and, if
the task has it, whether the length-normalised choice is correct (`correct_norm`). Each held-out row has its number of
answer tokens and its NLL in nats.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.core.errors import UserError

Classes = NDArray[np.int64]


class Predictions(NamedTuple):
    """The answers to the N items of one task."""

    gold: Classes
    prediction: Classes
    correct_norm: Classes | None
    """Whether the choice by likelihood per character is correct; None if the task has no acc_norm."""


ByTask = dict[str, dict[str, Predictions]]
"""Predictions by shots (`0-shot`) and task."""


def predictions(items: pd.DataFrame) -> ByTask:
    """Return the answers in the table that `evaluate` writes, in item order."""
    found: ByTask = {}
    for (shots, task), group in items.sort_values("item", kind="stable").groupby(["shots", "task"]):
        found.setdefault(f"{shots}-shot", {})[str(task)] = of_one_task(group)
    return found


def of_one_task(items: pd.DataFrame) -> Predictions:
    columns = items[["gold", "prediction"]].to_numpy(dtype=np.int64)
    norm = items["correct_norm"]
    return Predictions(columns[:, 0], columns[:, 1], norm.to_numpy(dtype=np.int64) if norm.notna().all() else None)


def to_digits(answers: ByTask) -> dict[str, Any]:
    """Return the answers as JSON. Raises UserError if a task has more than ten choices."""
    return {
        shots: {
            task: {name: digits(column) for name, column in columns._asdict().items() if column is not None}
            for task, columns in tasks.items()
        }
        for shots, tasks in answers.items()
    }


def digits(classes_N: Classes) -> str:
    if classes_N.max() > 9:
        raise UserError(
            "every value is stored as one digit, but one is above 9: a task has over ten choices, or a prompt over "
            "nine constraints"
        )
    return "".join(map(str, classes_N.tolist()))


def from_digits(content: dict[str, Any]) -> ByTask:
    """Return the answers that `to_digits` wrote."""
    return {
        shots: {
            task: Predictions(
                classes(columns["gold"]),
                classes(columns["prediction"]),
                classes(columns["correct_norm"]) if "correct_norm" in columns else None,
            )
            for task, columns in tasks.items()
        }
        for shots, tasks in content.items()
    }


def classes(text: str) -> Classes:
    """Return a string of digits as classes [N]."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - ord("0")


def held_out_answers(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the held-out rows' answer tokens and NLL in nats by id, as JSON."""
    ids = [str(name) for name in rows["id"]]
    return {name: dict(zip(ids, rows[name].tolist(), strict=True)) for name in ("tokens", "nll")}
