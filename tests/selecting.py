"""Inputs of the selection, and the stages `candidates` and `sample` run on them."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stages import candidates, sample
from stages.cluster import CLUSTERS
from stages.lib.core.artifacts import read_jsonl, read_table, write_table
from stages.lib.selection.partitions import count_partitions, named, with_partitions
from stages.ppl import PPL


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
    """Write candidates.parquet of raw, ppl, clusters and leaks; without `held_out`, no row is held out."""
    path, nothing = folder / "candidates.parquet", folder / "nothing_held_out.jsonl"
    nothing.touch()
    candidates.candidates(candidates.Params(), **tables, held_out=held_out or nothing, candidates=path)
    return path


def select_rows(folder: Path, raw: Path, candidates: Path, arms: dict, arm: str = "ours") -> Selected:
    """Run `sample` with an arm as its own control."""
    seeds = list(range(count_partitions(read_table(candidates))))
    params = sample.Params.model_validate({"cluster": {"seeds": seeds}, "arms": arms, "control": arm})
    samples, sample_parquet = folder / f"{arm}.jsonl", folder / f"{arm}.parquet"
    sample.sample(params, arm=arm, raw=raw, candidates=candidates, samples=samples, sample_parquet=sample_parquet)
    return Selected(read_table(raw), read_jsonl(samples), read_table(sample_parquet))
