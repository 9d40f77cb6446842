"""Inputs of the selection, and the stages `candidates` and `sample` run on them."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stages import candidates, sample
from stages.cluster import CLUSTERS
from stages.dedup import DUPLICATES
from stages.lib.core.artifacts import read_jsonl, read_table, write_table
from stages.lib.selection.partitions import count_partitions, named, with_partitions
from stages.ppl import PPL
from stages.rate import RATINGS

NEEDED = {"all": {}, "threshold": {"min": 0}, "deita": {"fraction": 0.1, "distance": 0.05}}
"""Settings that a method needs; the others need a fraction."""


def arm_of(method: str) -> dict:
    return {"method": method, "seed": 1} | NEEDED.get(method, {"fraction": 0.1})


class Selected(NamedTuple):
    raw: pd.DataFrame
    samples: list[dict]
    """Rows of the arm."""
    why: pd.DataFrame
    """Every row of raw: cell, rank, score, selected, reason."""


def write_ppl(path: Path, ids: list[str], nll: list[float | None], tokens: list[int] | None = None) -> Path:
    """Write ppl.parquet; for simplicity, a perplexity is the NLL itself."""
    scores = {"tokens": tokens or [9] * len(ids), "nll": nll, "ppl": nll}
    write_table(path, dict.fromkeys(PPL.names, ids) | scores, PPL)
    return path


def write_clusters(
    path: Path,
    ids: list[str],
    clusters: list[int],
    length_groups: list[int] | None = None,
    distances: list[float] | None = None,
    others: list[list[int]] | None = None,
) -> Path:
    """Write clusters.parquet, by default with one length group and every row at its centroid.

    `others` has the clusters of other partitions, with every row at distance 1, 2, ... of partition 1, 2, ...
    """
    cells = {
        "id": ids,
        "length_group": length_groups or [0] * len(ids),
        "cluster": clusters,
        "distance": distances or [0.0] * len(ids),
    }
    for number, partition in enumerate(others or [], 1):
        own = {"cluster": partition, "distance": [float(number)] * len(ids)}
        cells |= {column: own[name] for name, column in named(number).items()}
    write_table(path, cells, with_partitions(CLUSTERS, 1 + len(others or [])))
    return path


def make_candidates(folder: Path, held_out: Path | None = None, **tables: Path) -> Path:
    """Write candidates.parquet of raw, ppl, clusters and leaks.

    Without `held_out`, no row is held out; without `duplicates` or `ratings`, no row is a duplicate, or rated.
    """
    path, nothing = folder / "candidates.parquet", folder / "nothing_held_out.jsonl"
    nothing.touch()
    no_duplicates, no_ratings = folder / "no_duplicates.parquet", folder / "no_ratings.parquet"
    write_table(no_duplicates, {name: [] for name in DUPLICATES.names}, DUPLICATES)
    ids = read_table(tables["raw"], "id")["id"]
    write_table(no_ratings, {name: [None] * len(ids) for name in RATINGS.names} | {"id": ids}, RATINGS)
    tables = {"duplicates": no_duplicates, "ratings": no_ratings, "held_out": held_out or nothing} | tables
    candidates.candidates(candidates.Params(), **tables, candidates=path)
    return path


def select_rows(
    folder: Path, raw: Path, candidates: Path, arms: dict, arm: str = "ours", embeddings: Path = Path("nowhere")
) -> Selected:
    """Run `sample` with an arm as its own control."""
    seeds = list(range(count_partitions(read_table(candidates))))
    settings = {"threads": 1, "cluster": {"seeds": seeds}, "arms": arms, "control": arm}
    outs = {"samples": folder / f"{arm}.jsonl", "sample_parquet": folder / f"{arm}.parquet"}
    sample.sample(
        sample.Params.model_validate(settings), arm, raw=raw, candidates=candidates, embeddings=embeddings, **outs
    )
    return Selected(read_table(raw), read_jsonl(outs["samples"]), read_table(outs["sample_parquet"]))
