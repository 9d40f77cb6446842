"""Inputs of the selection, and the stages `candidates` and `sample` run on them."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stages import candidates, sample
from stages.cluster import CLUSTERS
from stages.lib.core.artifacts import read_jsonl, read_table, write_table
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
) -> Path:
    """Write clusters.parquet, by default with one length group and every row at its centroid."""
    cells = {
        "id": ids,
        "length_group": length_groups or [0] * len(ids),
        "cluster": clusters,
        "distance": distances or [0.0] * len(ids),
    }
    write_table(path, cells, CLUSTERS)
    return path


def make_candidates(folder: Path, raw: Path, ppl: Path, clusters: Path, leaks: Path) -> Path:
    path = folder / "candidates.parquet"
    candidates.candidates(candidates.Params(), raw=raw, ppl=ppl, clusters=clusters, leaks=leaks, candidates=path)
    return path


def select_rows(folder: Path, raw: Path, candidates: Path, arms: dict, arm: str = "ours") -> Selected:
    """Run `sample` with an arm as its own control."""
    params = sample.Params.model_validate({"arms": arms, "control": arm})
    samples, sample_parquet = folder / f"{arm}.jsonl", folder / f"{arm}.parquet"
    sample.sample(params, arm=arm, raw=raw, candidates=candidates, samples=samples, sample_parquet=sample_parquet)
    return Selected(read_table(raw), read_jsonl(samples), read_table(sample_parquet))
