"""Compare one arm with the control and with the base. `report` reads nothing else about the arm.

data/samples/<arm>.parquet, data/train/<arm>.{json,parquet}, data/train/<control>.parquet,
data/eval/{<arm>,<control>,base}, data/leaks.parquet, models/hub/base.json
    -> metrics/arms/<arm>.json, metrics/items/<arm>.json

This stage answers whether two models differ (`statistics.paired`). Whether a method helps needs several runs of it;
`report` answers that, from metrics/items. The arm `base` is the model before any tuning: it has scores, but no sample
and no training.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.core.artifacts import read_json, read_table, require_same_rows, write_json
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.evaluation.metrics import ITEM, majority_baseline, scores_by_task, scores_without_leaks
from stages.lib.evaluation.predictions import held_out_answers, predictions, to_digits
from stages.lib.models.flops import Size, training_flops
from stages.lib.selection.candidates import CELL
from stages.lib.selection.sketch import sketch
from stages.lib.statistics.comparison import Resampling, compare_losses, compare_models, rows_with_answers

SAME_ITEM = ["task", "shots", "item", "gold"]


class Params(Section):
    compare: Resampling
    control: str | None


def compare(
    params: Params,
    arm: str,
    evaluations: Path,
    leaks: Path,
    metrics: Path,
    items: Path,
    samples: Path | None = None,
    training: Path | None = None,
    base_json: Path | None = None,
) -> None:
    """Compare an arm. Only the arm `base` goes without `samples`, `training` and `base_json`."""
    ours = read_items(evaluations, arm)
    found: dict[str, Any] = {
        "scores": scores_by_task(ours),
        "scores_without_leaks": scores_without_leaks(ours, read_table(leaks, *ITEM)),
    }
    kept: dict[str, Any] = {"items": to_digits(predictions(ours))}
    if arm == "base":
        found["majority_baseline"] = scores_by_task(ours, majority_baseline)
    elif samples is None or training is None or base_json is None:
        raise UserError(f"the arm {arm} needs --samples, --training and --base_json; see dvc.yaml")
    else:
        rows, sample = read_table(training / f"{arm}.parquet"), read_table(samples / f"{arm}.parquet")
        kept |= {"held_out": held_out_answers(rows), "selection": sketch(sample["id"][sample["selected"]])}
        found |= {
            "sample": sample_counts(sample),
            **training_results(read_json(training / f"{arm}.json"), rows, Size(**read_json(base_json))),
            **differences(params, arm, ours, rows, evaluations, training),
        }
    write_json(metrics, found)
    write_json(items, kept)


def training_results(report: dict[str, Any], rows: pd.DataFrame, base: Size) -> dict[str, Any]:
    """Return the training report, the held-out loss in nats per answer token, and the cost of training."""
    groups = rows_with_answers(rows)
    return {
        "train": report,
        "held_out_loss": {name: float(group["nll"].sum() / group["tokens"].sum()) for name, group in groups.items()},
        "cost": {"training_tokens": report["tokens"], "training_flops": training_flops(report, base)},
    }


def differences(
    params: Params, arm: str, items: pd.DataFrame, rows: pd.DataFrame, evaluations: Path, training: Path
) -> dict[str, Any]:
    """Return the arm minus the base and, unless the arm is the control, minus the control."""
    others = {"vs_base": ("base", rows["nll_base"])}
    if arm != params.control:
        theirs = read_table(training / f"{params.control}.parquet")
        require_same_rows(arm=rows["id"], control=theirs["id"])
        others["vs_control"] = (str(params.control), theirs["nll"])
    found = {}
    for name, (other, nll) in others.items():
        their_items = read_items(evaluations, other)
        require_same_items(items, their_items)
        found[name] = {
            "scores": compare_models(params.compare, predictions(items), predictions(their_items)),
            "held_out_loss": compare_losses(params.compare, rows, nll),
        }
    return found


def read_items(evaluations: Path, arm: str) -> pd.DataFrame:
    return read_table(evaluations / arm / "items.parquet")


def require_same_items(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    if not ours[SAME_ITEM].equals(theirs[SAME_ITEM]):
        raise UserError("data/eval: two models were evaluated on different items or shots; run `dvc repro`")


def sample_counts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers of selected rows, candidates and covered cells, and of rows by cell and by source."""
    candidates = rows[rows["rank"].notna()]
    cells, sources = (candidates.groupby(by)["selected"].agg(["size", "sum"]) for by in (CELL, "source"))
    return {
        "rows": int(rows["selected"].sum()),
        "candidates": len(candidates),
        "cells_covered": int((cells["sum"] > 0).sum()),
        "cells": [
            {"cell": f"{group}.{cluster}", "candidates": int(row["size"]), "selected": int(row["sum"])}
            for (group, cluster), row in cells.iterrows()
        ],
        "sources": [
            {"source": source, "candidates": int(row["size"]), "selected": int(row["sum"])}
            for source, row in sources.iterrows()
        ],
    }


if __name__ == "__main__":
    run(compare, Params)
