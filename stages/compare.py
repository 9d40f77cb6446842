"""Set one arm beside the control and the base: all that `report` tells of it.

data/samples/<arm>.parquet, data/train/<arm>.{json,parquet}, data/train/<control>.parquet,
data/eval/{<arm>,<control>,base} -> metrics/arms/<arm>.json
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.artifacts import read_json, read_table, require_same_rows, write_json
from stages.lib.metrics import by_task, differences
from stages.lib.params import Section
from stages.lib.stage import run
from stages.lib.stop import Stop

log = logging.getLogger("stages")
SAME_ITEM = ["task", "shots", "item", "gold"]


class Params(Section):
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
    metrics: Path,
) -> None:
    ours, base = read_items(items), read_items(base_items)
    require_same_items(ours, base)
    held_out = read_table(losses)
    found = figures(ours, held_out, "nll")
    result: dict[str, Any] = {
        "sample": sample_facts(read_table(why)),
        "train": read_json(training),
        **found,
        "vs_base": differences(found, figures(base, held_out, "nll_base")),
    }
    if arm != params.control:
        theirs, other_losses = read_items(control_items), read_table(control_losses)
        require_same_items(ours, theirs)
        require_same_rows(arm=held_out["id"], control=other_losses["id"])
        result["vs_control"] = differences(found, figures(theirs, other_losses, "nll"))
    write_json(metrics, result)


def figures(items: pd.DataFrame, held_out: pd.DataFrame, nll: str) -> dict[str, Any]:
    return {"scores": by_task(items), "held_out_loss": held_out_loss(held_out, nll)}


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


def held_out_loss(rows: pd.DataFrame, nll: str) -> dict[str, float]:
    """Return nats per answer token over all held-out rows (`all`) and for every source."""
    groups = {"all": rows, **{str(source): group for source, group in rows.groupby("source")}}
    return {name: float(g[nll].sum() / g["tokens"].sum()) for name, g in groups.items() if g["tokens"].sum()}


if __name__ == "__main__":
    run(compare, Params)
