"""Tell it all: one summary of rows, perplexities, cells, arms and differences, and the tables behind the plots.

metrics/arms/*, data/eval/base, data/raw.parquet, data/held_out.jsonl, data/dropped.parquet, data/ppl.parquet,
data/clusters.parquet -> metrics/summary.json, metrics/plots/{ppl,cells,loss,scores}.csv
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.artifacts import atomic, read_json, read_jsonl, read_table, require_same_rows, write_json
from stages.lib.metrics import by_task, floor
from stages.lib.params import Section
from stages.lib.stage import run

log = logging.getLogger("stages")
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
Arms = dict[str, Any]


class AnyArm(Section):
    model_config = Section.model_config | {"extra": "ignore"}


class Params(Section):
    arms: dict[str, AnyArm]
    control: str | None


def report(
    params: Params,
    arms: Path,
    base_items: Path,
    raw: Path,
    held_out: Path,
    dropped: Path,
    ppl: Path,
    clusters: Path,
    summary: Path,
    plots: Path,
) -> None:
    corpus, scores, cells = read_table(raw, "id", "source"), read_table(ppl), read_table(clusters)
    require_same_rows(raw=corpus["id"], ppl=scores["id"], clusters=cells["id"])
    scored = corpus.assign(ppl=scores["ppl"], tokens=scores["tokens"])
    base = read_table(base_items / "items.parquet")
    base_scores, floor_scores = by_task(base), by_task(base, floor)
    found = read_arms(arms, list(params.arms))

    content = {
        "rows": rows_by_source(corpus, pd.DataFrame(read_jsonl(held_out)), read_table(dropped)),
        "ppl": {"all": quantiles(scored), **{str(s): quantiles(g) for s, g in scored.groupby("source")}},
        "cells": cell_facts(cells),
        "base": {"scores": base_scores},
        "floor": floor_scores,
        "arms": {name: without_series(arm) for name, arm in found.items()},
    }
    write_json(summary, content)
    with atomic(plots) as folder:
        folder.mkdir()
        for name, table in plot_tables(scored, found, {"base": base_scores, "(floor)": floor_scores}).items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    say(found, params.control)


def read_arms(folder: Path, names: list[str]) -> Arms:
    """Return what `compare` wrote of the arms that params name; say which other file to remove."""
    stale = sorted(path for path in folder.glob("*.json") if path.stem not in names)
    if stale:
        listed = " ".join(str(path) for path in stale)
        log.warning("params.yaml names no such arm, so it is ignored; `git rm %s`", listed)
    return {name: read_json(folder / f"{name}.json") for name in names}


def rows_by_source(raw: pd.DataFrame, held_out: pd.DataFrame, dropped: pd.DataFrame) -> dict[str, Any]:
    """Return rows read, raw, held out and dropped by reason, for every source and over all."""
    held = held_out["source"] if len(held_out) else pd.Series(dtype=str)
    names = sorted({*raw["source"], *held, *dropped["source"]})
    found: dict[str, Any] = {}
    for name in ["all", *names]:
        kept, out, bad = (c if name == "all" else c[c == name] for c in (raw["source"], held, dropped["source"]))
        reasons = dropped.loc[bad.index, "reason"].value_counts().sort_index()
        found[name] = {
            "read": len(kept) + len(out) + len(bad),
            "raw": len(kept),
            "held_out": len(out),
            "dropped": {str(reason): int(count) for reason, count in reasons.items()},
        }
    return found


def quantiles(rows: pd.DataFrame) -> dict[str, float]:
    values = rows["ppl"].dropna()
    named = {f"p{round(100 * q):02d}": float(np.quantile(values, q)) for q in QUANTILES} if len(values) else {}
    return named | {"without": int(rows["ppl"].isna().sum()), "tokens": int(rows["tokens"].sum())}


def cell_facts(cells: pd.DataFrame) -> dict[str, float]:
    sizes = cells.groupby(["length_group", "cluster"]).size()
    return {
        "cells": len(sizes),
        "smallest": int(sizes.min()),
        "median": float(sizes.median()),
        "largest": int(sizes.max()),
        "mean_distance": float(cells["distance"].mean()),
    }


def without_series(arm: Any) -> Any:
    """Leave out lists: what `dvc metrics diff` cannot show stands in metrics/arms and in the plots."""
    if not isinstance(arm, dict):
        return arm
    return {key: without_series(value) for key, value in arm.items() if not isinstance(value, list)}


def plot_tables(scored: pd.DataFrame, arms: Arms, marks: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Return the tables behind the plots; `marks` are scores to set beside those of the arms."""
    cells = [{"arm": name, **cell} for name, arm in arms.items() for cell in arm["sample"]["cells"]]
    losses = [{"arm": name, **entry} for name, arm in arms.items() for entry in arm["train"]["loss"]]
    figures = marks | {name: arm["scores"] for name, arm in arms.items()}
    scores = [
        {"arm": name, "shots": shots, "task": task, "macro_f1": values["macro_f1"], "accuracy": values["accuracy"]}
        for name, by_shots in figures.items()
        for shots, tasks in by_shots.items()
        for task, values in tasks.items()
    ]
    return {
        "ppl": histogram(scored.dropna(subset="ppl")),
        "cells": pd.DataFrame(cells, columns=["arm", "cell", "candidates", "selected"]),
        "loss": pd.DataFrame(losses, columns=["arm", "step", "loss"]),
        "scores": pd.DataFrame(scores),
    }


def histogram(scored: pd.DataFrame, bins: int = 40) -> pd.DataFrame:
    """Return the share of each source's rows per bin of log perplexity."""
    if scored.empty:
        return pd.DataFrame(columns=["source", "ppl", "share"])
    edges = np.geomspace(scored["ppl"].min(), scored["ppl"].max() * (1 + 1e-9), bins + 1)
    tables = [
        pd.DataFrame({"source": source, "ppl": edges[:-1], "share": np.histogram(group["ppl"], edges)[0] / len(group)})
        for source, group in scored.groupby("source")
    ]
    return pd.concat(tables, ignore_index=True)


def say(arms: Arms, control: str | None) -> None:
    for name, arm in arms.items():
        if name == control:
            continue
        for shots, tasks in arm["vs_control"]["scores"].items():
            est = tasks["mean"]["macro_f1"]["est"]
            log.info("%s minus %s, %s, mean macro-F1: %+.4f (one seed, no interval)", name, control, shots, est)


if __name__ == "__main__":
    run(report, Params)
