"""Set one arm beside the control and the base: all that `report` tells of it.

data/samples/<arm>.parquet, data/train/<arm>.{json,parquet}, data/train/<control>.parquet,
data/eval/{<arm>,<control>,base}, data/leaks.parquet -> metrics/arms/<arm>.json, metrics/items/<arm>.json

Here the question is whether these two models differ (`paired`). Whether the method helps takes several runs of it, and
`report` answers it, from the items.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.core.artifacts import read_json, read_table, require_same_rows, write_json
from stages.lib.core.errors import Stop
from stages.lib.core.params import Count, Positive, Section
from stages.lib.core.runner import run
from stages.lib.evaluation.metrics import ITEM, by_task, without_leaks
from stages.lib.evaluation.predictions import EVERYWHERE, Answers, answers, held_out, outcomes
from stages.lib.statistics import paired

log = logging.getLogger("stages")
SAME_ITEM = ["task", "shots", "item", "gold"]
STATISTICS = {"accuracy": paired.accuracy, "macro_f1": paired.macro_f1, "acc_norm": paired.accuracy}
Told = dict[str, dict[str, float]]


class Compare(Section):
    resamples: Positive
    """Of the items, for an interval."""
    randomisations: Positive
    """For a p, which is at least one over this number and one."""
    seed: Count


class Params(Section):
    compare: Compare
    control: str | None


def compare(
    params: Params,
    arm: str,
    why: Path,
    training: Path,
    losses: Path,
    control_losses: Path,
    items: Path,
    control_items: Path,
    base_items: Path,
    leaks: Path,
    metrics: Path,
    outcome: Path,
) -> None:
    ours, base, rows = read_items(items), read_items(base_items), read_table(losses)
    require_same_items(ours, base)
    result: dict[str, Any] = {
        "sample": sample_facts(read_table(why)),
        "train": read_json(training),
        "scores": by_task(ours),
        "scores_without_leaks": without_leaks(ours, read_table(leaks, *ITEM)),
        "held_out_loss": held_out_loss(rows),
        "vs_base": {
            "scores": score_differences(params.compare, answers(ours), answers(base)),
            "held_out_loss": loss_differences(params.compare, rows, rows["nll_base"]),
        },
    }
    if arm != params.control:
        theirs, other = read_items(control_items), read_table(control_losses)
        require_same_items(ours, theirs)
        require_same_rows(arm=rows["id"], control=other["id"])
        result["vs_control"] = {
            "scores": score_differences(params.compare, answers(ours), answers(theirs)),
            "held_out_loss": loss_differences(params.compare, rows, other["nll"]),
        }
    write_json(metrics, result)
    write_json(outcome, {"items": answers(ours), "held_out": held_out(rows)})


def read_items(folder: Path) -> pd.DataFrame:
    return read_table(folder / "items.parquet")


def require_same_items(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    if not ours[SAME_ITEM].equals(theirs[SAME_ITEM]):
        raise Stop("two models were evaluated on different items or shots; run `dvc repro`")


def sample_facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return counts of the selection: rows, cells, and every cell's candidates and selected rows."""
    candidates = rows[rows["rank"].notna()]
    cells = candidates.groupby(["length_group", "cluster"])["selected"].agg(["size", "sum"])
    return {
        "rows": int(rows["selected"].sum()),
        "candidates": len(candidates),
        "cells_covered": int((cells["sum"] > 0).sum()),
        "cells": [
            {"cell": f"{group}.{cluster}", "candidates": int(row["size"]), "selected": int(row["sum"])}
            for (group, cluster), row in cells.iterrows()
        ],
    }


def score_differences(settings: Compare, ours: Answers, theirs: Answers) -> dict[str, dict[str, Told]]:
    """Return ours minus theirs by shots, task (and `mean` over them) and metric."""
    return {shots: by_metric(settings, shots, ours[shots], theirs[shots]) for shots in ours}


def by_metric(settings: Compare, shots: str, ours: Any, theirs: Any) -> dict[str, Told]:
    tables = {task: contingency(ours[task], theirs[task]) for task in ours}
    drawn = {
        task: {metric: draw(settings, f"{shots} {task}", metric, counts) for metric, counts in metrics.items()}
        for task, metrics in tables.items()
    }
    told = {task: {metric: paired.tell(one) for metric, one in draws.items()} for task, draws in drawn.items()}
    paired.adjust(told)
    for task, metrics in tables.items():
        for metric in metrics.keys() - {"macro_f1"}:
            told[task][metric]["p_mcnemar"] = paired.mcnemar(metrics[metric])
    mean = {metric: paired.tell(paired.mean([draws[metric] for draws in drawn.values()])) for metric in EVERYWHERE}
    return told | {"mean": mean}


def contingency(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, paired.Counts]:
    """Return the counts [G, A, B] of one task by metric."""
    other = outcomes(theirs)
    return {metric: paired.tabulate(gold, one, other[metric][1]) for metric, (gold, one) in outcomes(ours).items()}


def draw(settings: Compare, name: str, metric: str, counts_GAB: paired.Counts) -> paired.Draws:
    """Return one task's draws; every task has dice of its own, so another task moves no number."""
    rng = np.random.default_rng([settings.seed, *name.encode()])
    return paired.draw_items(counts_GAB, STATISTICS[metric], settings.resamples, settings.randomisations, rng)


def loss_differences(settings: Compare, rows: pd.DataFrame, other: pd.Series) -> Told:
    """Return the arm's held-out loss minus the other's, over all rows (`all`) and for every source."""
    return {
        name: paired.tell(
            paired.draw_rows(
                group["nll"].to_numpy(),
                other[group.index].to_numpy(),
                group["tokens"].to_numpy(),
                settings.resamples,
                settings.randomisations,
                settings.seed,
            )
        )
        for name, group in with_answers(rows).items()
    }


def held_out_loss(rows: pd.DataFrame) -> dict[str, float]:
    """Return nats per answer token over all held-out rows (`all`) and for every source."""
    return {name: float(group["nll"].sum() / group["tokens"].sum()) for name, group in with_answers(rows).items()}


def with_answers(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    groups = {"all": rows, **{str(source): group for source, group in rows.groupby("source")}}
    return {name: group[group["tokens"] > 0] for name, group in groups.items() if group["tokens"].sum()}


if __name__ == "__main__":
    run(compare, Params)
