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


def write_ratings(path: Path, ids: list[str], **columns: list) -> Path:
    """Write ratings.parquet; columns that are not given are empty."""
    write_table(path, pd.DataFrame({"id": ids} | columns).reindex(columns=RATINGS.names), RATINGS)
    return path


def make_candidates(folder: Path, raw: Path, **tables: Path) -> Path:
    """Write candidates.parquet; of the tables that are not given, none says anything about a row."""
    path, nothing, no_pairs = folder / "candidates.parquet", folder / "nothing.jsonl", folder / "no_pairs"
    nothing.touch()
    write_table(no_pairs, DUPLICATES.empty_table(), DUPLICATES)
    unrated = write_ratings(folder / "unrated", list(read_table(raw, "id")["id"]))
    others = {"held_out": nothing, "reviews": nothing, "duplicates": no_pairs, "ratings": unrated}
    candidates.candidates(candidates.Params(), raw=raw, **others | tables, candidates=path)
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
