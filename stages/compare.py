"""Compare one arm with the control and with the base. `report` reads nothing else about the arm.

data/samples/<arm>.parquet, data/train/<arm>.{json,parquet}, data/train/<control>.parquet,
data/eval/{<arm>,<control>,base}, data/answers/{<arm>,<control>,base}.parquet, data/leaks.parquet, models/hub/base.json
    -> metrics/arms/<arm>.json, metrics/items/<arm>.json

This stage answers whether two models differ (`statistics.paired`). Whether a method helps needs several runs of it;
`report` answers that, from metrics/items. The arm `base` is the model before any tuning: it has scores, but no sample
and no training. The control of a preference is the arm that it came from; instead of a sample it has margins
(data/prefer/<name>.parquet).
"""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.lib.core.artifacts import read_json, read_table, require_same_rows, write_json
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.evaluation.answers import answer_scores, floors, mark_answers
from stages.lib.evaluation.marks import marks_to_json
from stages.lib.evaluation.metrics import ITEM, majority_baseline, scores_by_task, scores_without_leaks
from stages.lib.evaluation.predictions import held_out_answers, predictions, to_digits
from stages.lib.models.flops import Size, preference_flops, training_flops
from stages.lib.selection.candidates import CELL
from stages.lib.selection.sketch import sketch
from stages.lib.statistics.comparison import (
    Resampling,
    compare_answers,
    compare_losses,
    compare_models,
    rows_with_answers,
)

SAME_ITEM = ["task", "shots", "item", "gold"]


class Params(Section):
    compare: Resampling
    control: str | None


def compare(
    params: Params,
    arm: str,
    evaluations: Path,
    answers: Path,
    leaks: Path,
    metrics: Path,
    items: Path,
    samples: Path | None = None,
    prefer_parquet: Path | None = None,
    training: Path | None = None,
    base_json: Path | None = None,
    control: str = "",
) -> None:
    """Compare an arm, or a preference with `prefer_parquet` and `control`. Only `base` goes without any training."""
    ours = read_results(arm, evaluations, answers)
    found: dict[str, Any] = {
        "scores": scores_by_task(ours.items),
        "scores_without_leaks": scores_without_leaks(ours.items, read_table(leaks, *ITEM)),
        "answers": answer_results(ours),
    }
    kept: dict[str, Any] = {"items": to_digits(predictions(ours.items)), "answers": marks_to_json(ours.marks)}
    if arm == "base":
        majority = scores_by_task(ours.items, majority_baseline)
        found |= {"majority_baseline": majority, "answer_floors": floors(ours.answers)}
    elif training is None or base_json is None or not (samples or prefer_parquet):
        raise UserError(f"the arm {arm} needs --samples or --prefer_parquet, --training and --base_json; see dvc.yaml")
    else:
        params = params.model_copy(update={"control": control or params.control})
        folders = Folders(evaluations, answers, training)
        report, rows = read_json(training / f"{arm}.json"), read_table(training / f"{arm}.parquet")
        kept["held_out"] = held_out_answers(rows)
        found |= {"train": report, "held_out_loss": mean_losses(rows), **differences(params, arm, ours, rows, folders)}
        size = Size(**read_json(base_json))
        if samples:
            sample = read_table(samples / f"{arm}.parquet")
            kept["selection"] = sketch(sample["id"][sample["selected"]])
            found |= {"sample": sample_counts(sample), "cost": cost_of(report, training_flops(report, size))}
        if prefer_parquet:
            pairs = read_table(prefer_parquet)
            kept["margins"] = dict(zip(pairs["id"], pairs["margin"].tolist(), strict=True))
            found |= {"pairs": pair_results(pairs), "cost": cost_of(report, preference_flops(report, size))}
    write_json(metrics, found)
    write_json(items, kept)


class Folders(NamedTuple):
    """What is there of every arm, each under its name."""

    evaluations: Path
    answers: Path
    training: Path


class Results(NamedTuple):
    """What one model answered to the benchmark and to the prompts, and the marks of the latter."""

    items: pd.DataFrame
    answers: pd.DataFrame
    marks: pd.DataFrame


def read_results(arm: str, evaluations: Path, answers: Path) -> Results:
    written = read_table(answers / f"{arm}.parquet")
    return Results(read_table(evaluations / arm / "items.parquet"), written, mark_answers(written))


def answer_results(ours: Results) -> dict[str, float]:
    """Return the shares of right answers to the prompts, their mean length, and the share that ended by itself."""
    found, written = answer_scores(ours.marks), ours.answers
    if written.empty:
        return found
    return found | {"characters": float(written["answer"].str.len().mean()), "ended": float(written["ended"].mean())}


def cost_of(report: dict[str, Any], flops: int) -> dict[str, int]:
    return {"training_tokens": report["tokens"], "training_flops": flops}


def mean_losses(rows: pd.DataFrame) -> dict[str, float]:
    """Return the held-out loss in nats per answer token, of all rows and by source."""
    return {name: float(group["nll"].sum() / group["tokens"].sum()) for name, group in rows_with_answers(rows).items()}


def pair_results(pairs: pd.DataFrame) -> dict[str, float]:
    """Return what preference tuning did to the held-out pairs, in means per pair.

    The log-probabilities and the margin are sums over an answer's tokens, in nats; `accuracy` is the share of pairs
    whose better answer gained more.
    """
    return {
        "pairs": len(pairs),
        "margin": float(pairs["margin"].mean()),
        "accuracy": float((pairs["margin"] > 0).mean()),
        **{
            f"{side}_log_probability_{when}": float(pairs[f"{side}_{when}"].mean())
            for side in ("chosen", "rejected")
            for when in ("before", "after")
        },
        **{f"{side}_characters": float(pairs[f"{side}_characters"].mean()) for side in ("chosen", "rejected")},
    }


def differences(params: Params, arm: str, ours: Results, rows: pd.DataFrame, folders: Folders) -> dict[str, Any]:
    """Return the arm minus the base and, unless the arm is the control, minus the control."""
    others = {"vs_base": ("base", rows["nll_base"])}
    if arm != params.control:
        their_rows = read_table(folders.training / f"{params.control}.parquet")
        require_same_rows(arm=rows["id"], control=their_rows["id"])
        others["vs_control"] = (str(params.control), their_rows["nll"])
    found = {}
    for name, (other, nll) in others.items():
        theirs = read_results(other, folders.evaluations, folders.answers)
        require_same_items(ours.items, theirs.items)
        found[name] = {
            "scores": compare_models(params.compare, predictions(ours.items), predictions(theirs.items)),
            "held_out_loss": compare_losses(params.compare, rows, nll),
            "answers": compare_answers(params.compare, ours.marks, theirs.marks),
        }
    return found


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
