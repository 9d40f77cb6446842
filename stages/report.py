"""Tell it all: one summary of rows, perplexities, cells, arms and differences, and the tables behind the plots.

metrics/{arms,items}/*, data/eval/base, data/raw.parquet, data/held_out.jsonl, data/dropped.parquet, data/ppl.parquet,
data/clusters.parquet, data/stability.json, data/leaks.parquet, models/hub/{scorer,encoder,base}.json
    -> metrics/summary.json, metrics/plots/{ppl,cells,loss,scores}.csv

Where a method and the control have two runs or more, arms and their replicates, it answers whether the method helps
(`methods`); from one run of each it can only be said whether two models differ.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.core.artifacts import atomic, read_json, read_jsonl, read_table, require_same_rows, write_json
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.evaluation.metrics import by_task, floor, without_leaks
from stages.lib.models.flops import Size, arm_costs, selection_cost
from stages.lib.selection.methods import DRAWN
from stages.lib.statistics.comparison import difference

log = logging.getLogger("stages")
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
Arms = dict[str, Any]


class AnyArm(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    method: str
    replicate: str | None = None


class AnyBudget(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    unit: str


class AnyTrain(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    budget: AnyBudget


class Params(Section):
    arms: dict[str, AnyArm]
    control: str | None
    train: AnyTrain


def report(
    params: Params,
    arms: Path,
    items: Path,
    base_items: Path,
    raw: Path,
    held_out: Path,
    dropped: Path,
    ppl: Path,
    clusters: Path,
    stability: Path,
    leaks: Path,
    scorer: Path,
    encoder: Path,
    base_model: Path,
    summary: Path,
    plots: Path,
) -> None:
    corpus, scores, cells = read_table(raw, "id", "source"), read_table(ppl), read_table(clusters)
    require_same_rows(raw=corpus["id"], ppl=scores["id"], clusters=cells["id"])
    scored = corpus.assign(ppl=scores["ppl"], tokens=scores["tokens"])
    base, leaked = read_table(base_items / "items.parquet"), read_table(leaks)
    base_scores, floor_scores = by_task(base), by_task(base, floor)
    found, answered = (read_arms(folder, list(params.arms)) for folder in (arms, items))
    compared = methods(params, answered)

    content = {
        "rows": rows_by_source(corpus, pd.DataFrame(read_jsonl(held_out)), read_table(dropped)),
        "ppl": {"all": quantiles(scored), **{str(s): quantiles(g) for s, g in scored.groupby("source")}},
        "cells": cell_facts(cells),
        "stability": read_json(stability),
        "leaks": leak_facts(leaked),
        "cost": cost_facts(params, scores, found, *(Size(**read_json(path)) for path in (scorer, encoder, base_model))),
        "base": {"scores": base_scores, "scores_without_leaks": without_leaks(base, leaked)},
        "floor": floor_scores,
        "arms": {name: without_series(arm) for name, arm in found.items()},
        "methods": compared,
    }
    write_json(summary, content)
    with atomic(plots) as folder:
        folder.mkdir()
        for name, table in plot_tables(scored, found, {"base": base_scores, "(floor)": floor_scores}).items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    told = list(sentences(params, found, compared))
    for line in told:
        log.info("%s", line)
    if told:
        log.info("every interval is one of 95 % by itself: of twenty, about one is off by chance alone")


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


def leak_facts(leaks: pd.DataFrame) -> dict[str, Any]:
    """Return how many rows have an item of the benchmark, and rows and items by task and split, items by kind too."""
    found: dict[str, Any] = {"rows": leaks["id"].nunique(), "rows_dropped": leaks.loc[leaks["drop"], "id"].nunique()}
    for (task, split), group in leaks.groupby(["task", "split"]):
        kinds = group.groupby("kind")["item"].nunique().to_dict()
        counts = {"rows": group["id"].nunique(), "items": group["item"].nunique()} | kinds
        found.setdefault(task, {})[split] = counts
    return found


def cost_facts(
    params: Params, scores: pd.DataFrame, arms: Arms, scorer: Size, encoder: Size, base: Size
) -> dict[str, Any]:
    selection = selection_cost(scores, scorer, encoder)
    methods, unit = {name: arm.method for name, arm in params.arms.items()}, params.train.budget.unit
    if unit != "epochs":
        log.info("cost: the budget is in %s, one for all arms, so a smaller arm saves no training", unit)
    return {
        "selection": selection,
        "arms": arm_costs(arms, methods, params.control, unit, selection["flops"], base),
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


def methods(params: Params, answered: Arms) -> dict[str, Any]:
    """Return every method that can be compared with the control over runs and items: both have two runs or more."""
    groups = runs_of(params)
    theirs = groups.get(str(params.control), [])
    return {
        name: {
            "runs": len(ours),
            "control_runs": len(theirs),
            "draws_rows": int(params.arms[name].method in DRAWN),
            "vs_control": difference([answered[run] for run in ours], [answered[run] for run in theirs]),
        }
        for name, ours in groups.items()
        if name != params.control and min(len(ours), len(theirs)) > 1
    }


def runs_of(params: Params) -> dict[str, list[str]]:
    """Return the arms of every method: one in its own right, and its replicates."""
    groups: dict[str, list[str]] = {}
    for name, arm in params.arms.items():
        groups.setdefault(arm.replicate or name, []).append(name)
    return groups


def sentences(params: Params, arms: Arms, compared: dict[str, Any]) -> Iterator[str]:
    """Yield what is found of every method, in the mean macro-F1 of each shots and in held-out loss."""
    groups = runs_of(params)
    for name, ours in groups.items():
        if name == params.control:
            continue
        told = (compared.get(name) or arms[name])["vs_control"]
        both = f"over {len(ours)} and {len(groups[str(params.control)])} runs and items"
        scope = both if name in compared else "over items alone"
        found = [(f"{shots} mean macro-F1", tasks["mean"]["macro_f1"], 1) for shots, tasks in told["scores"].items()]
        found += [("held-out loss", one, -1) for source, one in told["held_out_loss"].items() if source == "all"]
        for what, one, better in found:
            figures = f"{one['est']:+.4f} [{one['lo']:+.4f}, {one['hi']:+.4f}] {scope}"
            yield f"{name} minus {params.control}, {what}: {figures}: {verdict(one, better, name in compared)}"
        yield from other_size(name, arms[name], str(params.control), arms[str(params.control)])
        if len(ours) > 1 and params.arms[name].method not in DRAWN:
            yield f"{name}: its seeds only train, for {params.arms[name].method} draws no rows"


def other_size(name: str, arm: Any, control: str, theirs: Any) -> Iterator[str]:
    """Yield what to know of two arms of unequal size, and of unequal budget, as a budget of epochs gives them."""
    if arm["sample"]["rows"] != theirs["sample"]["rows"]:
        yield f"{name} has {arm['sample']['rows']:,} rows, {control} {theirs['sample']['rows']:,}"
    if arm["train"]["steps"] != theirs["train"]["steps"]:
        steps = f"{arm['train']['steps']:,} steps, {control} {theirs['train']['steps']:,}"
        yield f"{name} was trained {steps}: their budgets differ, and a difference may be theirs"


def verdict(one: dict[str, float], better: int, of_methods: bool) -> str:
    """Return what a difference says; `better` is the sign of a better one."""
    side = (one["lo"] > 0) - (one["hi"] < 0)
    if "too_few" in one:
        return "too few items differ to say anything"
    if not of_methods:
        says = "these two models differ" if side else "no difference found between these two models"
        return f"{says}; the noise of training is not in the interval"
    return {better: "the method beats the control", 0: "no finding", -better: "the control beats the method"}[side]


if __name__ == "__main__":
    run(report, Params)
