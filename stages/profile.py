"""Describe the corpus. `report` reads nothing else about it.

data/raw.parquet, data/held_out.jsonl, data/dropped.parquet, data/candidates.parquet, data/leaks.parquet,
models/hub/scorer.json, models/hub/encoder.json -> data/profile.json
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.core.artifacts import read_json, read_jsonl, read_table, require_same_rows, write_json
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.models.flops import Size, selection_cost
from stages.lib.selection.candidates import CELL
from stages.lib.selection.partitions import count_partitions, take_partition

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
BINS = 40


class Params(Section):
    pass


def profile(
    _params: Params,
    raw: Path,
    held_out: Path,
    dropped: Path,
    candidates: Path,
    leaks: Path,
    scorer_json: Path,
    encoder_json: Path,
    profile: Path,
) -> None:
    corpus, rows = read_table(raw, "id", "instruction"), read_table(candidates)
    require_same_rows(raw=corpus["id"], candidates=rows["id"])
    distinct = rows.loc[~corpus["instruction"].duplicated(), "tokens"]
    sizes = (Size(**read_json(path)) for path in (scorer_json, encoder_json))
    content = {
        "rows": rows_by_source(rows["source"], read_jsonl(held_out), read_table(dropped)),
        "ppl": {"all": quantiles(rows), **{str(s): quantiles(g) for s, g in rows.groupby("source")}},
        "ppl_histogram": histogram(rows.dropna(subset="ppl")),
        "cells": describe_cells(rows),
        "leaks": leak_counts(read_table(leaks)),
        "selection_cost": selection_cost(distinct, *sizes),
    }
    write_json(profile, content)


def rows_by_source(raw: pd.Series, held_out: list[dict[str, Any]], dropped: pd.DataFrame) -> dict[str, Any]:
    """Count the rows read, kept in raw, held out, and dropped (by reason), for every source and for `all`."""
    held = pd.Series([row["source"] for row in held_out], dtype=object)
    found: dict[str, Any] = {}
    for name in ["all", *sorted({*raw, *held, *dropped["source"]})]:
        kept, out, bad = (c if name == "all" else c[c == name] for c in (raw, held, dropped["source"]))
        reasons = dropped.loc[bad.index, "reason"].value_counts().sort_index()
        found[name] = {
            "read": len(kept) + len(out) + len(bad),
            "raw": len(kept),
            "held_out": len(out),
            "dropped": {str(reason): int(count) for reason, count in reasons.items()},
        }
    return found


def quantiles(rows: pd.DataFrame) -> dict[str, float]:
    """Return quantiles of the perplexity, the number of rows without one, and the predicted tokens of all rows."""
    values = rows["ppl"].dropna()
    named = {f"p{round(100 * q):02d}": float(np.quantile(values, q)) for q in QUANTILES} if len(values) else {}
    return named | {"without": int(rows["ppl"].isna().sum()), "tokens": int(rows["tokens"].sum())}


def histogram(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the share of each source's rows per bin. Bins are equally wide in log ppl; `ppl` is the lower edge."""
    if rows.empty:
        return []
    edges = np.geomspace(rows["ppl"].min(), rows["ppl"].max() * (1 + 1e-9), BINS + 1)
    return [
        {"source": str(source), "ppl": float(edge), "share": count / len(group)}
        for source, group in rows.groupby("source")
        for edge, count in zip(edges[:-1], np.histogram(group["ppl"], edges)[0].tolist(), strict=True)
    ]


def describe_cells(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the sizes of the cells of partition 0, and those of each other partition under `partition_<number>`."""
    first, *others = (cell_sizes(take_partition(rows, partition)) for partition in range(count_partitions(rows)))
    return first | {f"partition_{number}": sizes for number, sizes in enumerate(others, 1)}


def cell_sizes(rows: pd.DataFrame) -> dict[str, float]:
    sizes = rows.groupby(CELL).size()
    return {
        "length_groups": int(rows["length_group"].nunique()),
        "cells": len(sizes),
        "smallest": int(sizes.min()),
        "median": float(sizes.median()),
        "largest": int(sizes.max()),
        "mean_distance": float(rows["distance"].mean()),
    }


def leak_counts(leaks: pd.DataFrame) -> dict[str, Any]:
    """Count the rows that contain a benchmark item; by task and split, count rows, items, and items of each kind."""
    found: dict[str, Any] = {"rows": leaks["id"].nunique(), "rows_dropped": leaks.loc[leaks["drop"], "id"].nunique()}
    for (task, split), group in leaks.groupby(["task", "split"]):
        kinds = group.groupby("kind")["item"].nunique().to_dict()
        counts = {"rows": group["id"].nunique(), "items": group["item"].nunique()} | kinds
        found.setdefault(task, {})[split] = counts
    return found


if __name__ == "__main__":
    run(profile, Params)
