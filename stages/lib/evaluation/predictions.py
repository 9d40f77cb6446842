"""What a model answered, item by item, short enough for git: metrics/items/<arm>.json.

Per shots and task one string of digits each in item order, the gold class and the predicted one, and, where the task
has it, whether the length-normalised choice is right (`correct_norm`); per held-out row its answer tokens and its
nll in nats.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.core.errors import Stop

Answers = dict[str, dict[str, dict[str, str]]]
Classes = NDArray[np.int64]
EVERYWHERE = ("accuracy", "macro_f1")
"""Metrics that every task has."""


def answers(items: pd.DataFrame) -> Answers:
    """Return every task's digits by shots and task, of the table that `evaluate` writes."""
    found: Answers = {}
    for (shots, task), group in items.sort_values("item", kind="stable").groupby(["shots", "task"]):
        columns = ["gold", "prediction"] + ["correct_norm"] * bool(group["correct_norm"].notna().all())
        found.setdefault(f"{shots}-shot", {})[str(task)] = {name: digits(group[name].astype(int)) for name in columns}
    return found


def digits(classes: pd.Series) -> str:
    if classes.max() > 9:
        raise Stop("a task has more than ten choices, and a digit tells ten; leave it out of the benchmark")
    return "".join(map(str, classes))


def classes(text: str) -> Classes:
    """Return a string of digits as classes [N]."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - ord("0")


def outcomes(task: dict[str, str]) -> dict[str, tuple[Classes, Classes]]:
    """Return gold and prediction [N] by metric; to accuracy and acc_norm an answer is right, 1, or not."""
    gold, prediction = classes(task["gold"]), classes(task["prediction"])
    right = {"accuracy": (gold == prediction).astype(np.int64)}
    if "correct_norm" in task:
        right["acc_norm"] = classes(task["correct_norm"])
    return {"macro_f1": (gold, prediction)} | {metric: (np.ones_like(gold), one) for metric, one in right.items()}


def held_out(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return answer tokens and nll in nats by id."""
    ids = [str(name) for name in rows["id"]]
    return {name: dict(zip(ids, rows[name].tolist(), strict=True)) for name in ("tokens", "nll")}
