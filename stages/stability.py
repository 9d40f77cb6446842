"""Measure how much of a selection is chance, and how much of it stays when rows are added.

    data/raw.parquet, data/candidates.parquet, data/embeddings.parquet -> data/stability.json

Each method selects from cells that are computed anew with the settings of the section `cluster` and its first seed.
Reported are:

- `overlap`: the share of its rows that it selects again from the cells of a variant (another seed, another number of
  clusters). Two random draws would share `expected_overlap`.
- `in_every_variant`: the share of its rows that it selects from the cells of every variant; the rest is its
  `instability`.
- `churn`: the share of an earlier selection that is gone after rows are added. Length groups, clusters and selection
  are computed anew before and after.
- `coverage`: how far the selection is from all candidates, as the L1 distance between the shares of the cells and the
  Wasserstein distance between the mean NLLs in nats.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from threadpoolctl import threadpool_limits

from stages.lib.core.artifacts import read_table, require_same_rows, write_json
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section, Seed, describe
from stages.lib.core.runner import run
from stages.lib.selection.candidates import CELL, mark_repeated
from stages.lib.selection.cells import Cluster, find_cells, read_vectors
from stages.lib.selection.methods import METHODS, MethodName, Wanted, select
from stages.lib.selection.quotas import arm_size, exact_fraction, lowest, rank_in_group
from stages.lib.text.hashing import uniform_hash

log = logging.getLogger("stages")
Fraction = Annotated[float, Field(gt=0, le=1)]
COLUMNS = ("id", "nll", "ppl", "characters", "reason")


class Stability(Section):
    methods: list[MethodName]
    """Methods to measure, all by perplexity, except those that need vectors or bounds of a score."""
    fraction: Fraction
    """Share of the candidates that each method selects."""
    seed: Seed
    """Draws the rows of `random` and `steady`, and those that count as added."""
    variants: dict[str, dict[str, Any]]
    """Changes to the section `cluster`, by name of the variant."""
    added: list[Positive | Fraction]
    """How many rows are added: a number, or a share of the rows before."""

    @model_validator(mode="after")
    def methods_need_nothing_else(self) -> "Stability":
        for name in self.methods:
            if METHODS[name].reads_vectors or name == "threshold":
                raise ValueError(f"methods: {name} needs vectors or bounds, which this stage does not give")
        return self


class Params(Section):
    threads: Positive
    portable: bool = False
    cluster: Cluster
    stability: Stability

    @model_validator(mode="after")
    def variants_are_settings(self) -> "Params":
        for name, changes in self.stability.variants.items():
            try:
                seeds = vary(self.cluster, changes).seeds
            except ValidationError as error:
                raise ValueError(f"stability.variants.{name}.{describe(error.errors()[0])}") from None
            if len(seeds) > 1:
                raise ValueError(f"stability.variants.{name}.seeds: a variant is one partition (got {list(seeds)})")
        return self


def stability(params: Params, raw: Path, candidates: Path, embeddings: Path, stability: Path) -> None:
    corpus, rows = read_table(raw, "id", "instruction"), read_table(candidates, *COLUMNS)
    require_same_rows(raw=corpus["id"], candidates=rows["id"])
    rows, vectors_ND = rows.assign(instruction=corpus["instruction"]), read_vectors(embeddings, corpus["id"])

    settings, base = params.stability, vary(params.cluster, {})
    variants = {name: vary(params.cluster, changes) for name, changes in settings.variants.items()}
    with threadpool_limits(params.threads):
        distinct = dict.fromkeys([base, *variants.values()])
        selected = {each: select_by_method(rows, vectors_ND, each, settings) for each in distinct}
        earlier = {
            addition_name(added): select_by_method(rows_before(added, rows, settings.seed), vectors_ND, base, settings)
            for added in settings.added
        }
    others = {name: selected[cells] for name, cells in variants.items()}
    methods = {method: measure_stability(method, selected[base], others, earlier) for method in settings.methods}
    expected = arm_size(len(selected[base]), exact_fraction(settings.fraction)) / len(selected[base])
    write_json(stability, {"expected_overlap": expected, "methods": methods})
    for method, found in methods.items():
        churn = "".join(f", churn at +{name} {share:.3f}" for name, share in found["churn"].items())
        log.info("%s: instability %.3f%s", method, found.get("instability", 0.0), churn)


def vary(cluster: Cluster, changes: dict[str, Any]) -> Cluster:
    """Return the settings of partition 0 with the changes; settings that give equal cells are equal.

    Small groups shrink, because a variant must not stop a pipeline whose own cells are fine.
    """
    first = cluster.model_dump() | {"seeds": cluster.seeds[:1]}
    settings = Cluster.model_validate(first | changes | {"small_groups": "shrink"})
    return settings.model_copy(update={"n_init": 1}) if settings.init == "hashed" else settings


def addition_name(added: float) -> str:
    return f"{added} rows" if isinstance(added, int) else f"{100 * added:g} %"


def rows_before(added: float, corpus: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the corpus as it is before the addition: without the rows that have the lowest hashes."""
    count = added if isinstance(added, int) else round(len(corpus) * added / (1 + added))
    if count >= len(corpus):
        raise UserError(f"params.yaml: stability.added: {added} rows of {len(corpus)} leave none before; add fewer")
    return corpus[~lowest(uniform_hash(list(corpus["id"]), "added", seed), count)]


def select_by_method(
    rows: pd.DataFrame, vectors_ND: NDArray[np.float32], cells: Cluster, settings: Stability
) -> pd.DataFrame:
    """Return the candidates among these rows with their cells and, in a column per method, whether it selects them."""
    rows = rows.assign(reason=mark_repeated(rows["instruction"], rows["reason"]))
    rows = rows.assign(**find_cells(rows, vectors_ND, cells)[CELL])
    candidates = rows[rows["reason"].isna()]
    candidates = candidates.assign(score=candidates["ppl"], rank=rank_in_group(candidates, "ppl"))
    wanted = Wanted(exact_fraction(settings.fraction), settings.seed)
    if not arm_size(len(candidates), wanted.share):
        raise UserError(
            f"params.yaml: stability.fraction: {settings.fraction} of {len(candidates)} candidates is less than one "
            "row; raise the fraction"
        )
    return candidates.assign(**{name: select(candidates, name, wanted) for name in settings.methods})


def measure_stability(
    method: str, base: pd.DataFrame, variants: dict[str, pd.DataFrame], earlier: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """Return the entry of stability.json for one method; it has `instability` only if there is a variant."""
    again = {name: selected_again(base[method], other[method]) for name, other in variants.items()}
    found: dict[str, Any] = {
        "rows": int(base[method].sum()),
        "overlap": {name: float(kept.mean()) for name, kept in again.items()},
        "churn": {name: float((~selected_again(old[method], base[method])).mean()) for name, old in earlier.items()},
        "coverage": coverage(base, base[base[method]]),
    }
    if again:
        in_all = pd.DataFrame(again).all(axis=1)
        found |= {"in_every_variant": float(in_all.mean()), "instability": float((~in_all).mean())}
    return found


def selected_again(selected: pd.Series, other: pd.Series) -> pd.Series:
    """Return for each selected row whether the other selection has it; it has no row that is not a candidate there."""
    return other.reindex(selected.index[selected], fill_value=False)


def coverage(candidates: pd.DataFrame, selected: pd.DataFrame) -> dict[str, float]:
    """Return how far the selection is from all candidates, in cells and in NLL."""
    from scipy.stats import wasserstein_distance

    share, of_selected = (rows.groupby(CELL).size() / len(rows) for rows in (candidates, selected))
    return {
        "cells_l1": float(share.sub(of_selected, fill_value=0).abs().sum()),
        # rounded, because scipy computes it with BLAS, whose last digits differ from run to run
        "nll_wasserstein": round(float(wasserstein_distance(selected["nll"], candidates["nll"])), 12),
    }


if __name__ == "__main__":
    run(stability, Params)
