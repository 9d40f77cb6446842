"""How much of the selected 1 % changes with another precision, and how long it takes to select without cells.

    python -m benchmarks.selection [data/raw.parquet models/hub/scorer models/hub/encoder]
    python -m benchmarks.selection diversity

The first compares with fp32 throughout: perplexities in bf16 or with `add_bos`, with cells from fp32 vectors; and cells
from bf16 vectors, with perplexities in fp32. The second selects 1 % of 375,506 synthetic unit vectors (around 160
centres of uneven size) by `coverage` and `deita`, with one thread.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.measure import Way, alternate, machine, seconds, table
from benchmarks.synthetic import CENTRES, unit_vectors
from stages.lib.core.artifacts import read_table
from stages.lib.models.loading import Dtype, LoadConfig, load_model, load_tokenizer
from stages.lib.selection.candidates import reasons
from stages.lib.selection.cells import Cluster, find_cells
from stages.lib.selection.diversity import best_apart, farthest_first
from stages.lib.selection.methods import Wanted, select
from stages.lib.selection.quotas import exact_fraction, rank_in_group

DEFAULT = ["data/raw.parquet", "models/hub/scorer", "models/hub/encoder"]
Case = tuple[pd.Series, pd.DataFrame]
"""Mean NLLs and cells."""
METHODS = ("spread", "steady")
MAX_TOKENS, BUDGET = 512, 1024
CELLS = Cluster(
    length_groups=5, clusters=20, small_groups="stop", algorithm="lloyd", init="hashed", n_init=1, seeds=(1,)
)


def main(arguments: list[str]) -> None:
    if arguments == ["diversity"]:
        print(f"{table(select_apart(rows=375_506, width=256, count=3_755, distances=(0.3, 0.56)))}\n\n{machine()}")
        return
    raw, scorer, encoder = map(Path, arguments or DEFAULT)
    corpus = read_table(raw)
    print(f"{table(compare(corpus, scorer, encoder, CELLS, fraction=0.01))}\n\n{machine()}")


def compare(
    corpus: pd.DataFrame, scorer: Path, encoder: Path, settings: Cluster, fraction: float
) -> list[dict[str, Any]]:
    """Return a line per change: how far its ranks of perplexity differ, and the share of fp32's rows it selects too."""
    nll = {
        "fp32": score(corpus, scorer, "fp32", add_bos=False),
        "perplexity in bf16": score(corpus, scorer, "bf16", add_bos=False),
        "with add_bos": score(corpus, scorer, "fp32", add_bos=True),
    }
    cells = {dtype: find_cells(corpus, embed(corpus, encoder, dtype), settings) for dtype in ("fp32", "bf16")}
    cases = {name: (values, cells["fp32"]) for name, values in nll.items()}
    cases["vectors in bf16"] = (nll["fp32"], cells["bf16"])
    first = cases.pop("fp32")
    return [
        {"against fp32": name, "1 - Spearman": 1 - float(case[0].corr(first[0], method="spearman"))}
        | {f"{method}: rows that stay": share_that_stays(corpus, first, case, method, fraction) for method in METHODS}
        for name, case in cases.items()
    ]


def share_that_stays(corpus: pd.DataFrame, first: Case, other: Case, method: str, fraction: float) -> float:
    """Return the share of the rows selected in the first case that are selected in the other too."""
    one, two = (selected(corpus, *case, method, fraction) for case in (first, other))
    return len(one & two) / len(one)


def score(corpus: pd.DataFrame, scorer: Path, dtype: Dtype, add_bos: bool) -> pd.Series:
    """Return the mean NLL of every row, NaN if no token is predicted."""
    from stages.lib.scoring.log_likelihood import nll_sums

    place, texts = pd.factorize(corpus["instruction"])
    tokenizer, model = load_tokenizer(scorer), load_model(scorer, LoadConfig(dtype=dtype), threads=1)
    ids = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    ids = [[tokenizer.bos_token_id, *row] for row in ids] if add_bos else ids
    sums = nll_sums(model, ids, [1] * len(ids), BUDGET, "perplexity, batches")
    tokens = np.array([len(row) - 1 for row in ids])
    return pd.Series(np.where(tokens > 0, sums / np.maximum(tokens, 1), np.nan)[place])


def embed(corpus: pd.DataFrame, encoder: Path, dtype: Dtype) -> NDArray[np.float32]:
    from stages.lib.scoring.embedding import unit_vectors

    place, texts = pd.factorize(corpus["instruction"])
    tokenizer, model = load_tokenizer(encoder), load_model(encoder, LoadConfig(dtype=dtype), 1, "AutoModel")
    ids = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS // 2)["input_ids"]
    return unit_vectors(model, ids, "mean", BUDGET)[place]


def selected(corpus: pd.DataFrame, nll: pd.Series, cells: pd.DataFrame, method: str, fraction: float) -> set[str]:
    """Return the ids of the rows that a method selects; no row is leaked."""
    none = pd.Series(False, index=corpus.index)
    reason = reasons(corpus["instruction"], nll, leaked=none, near_held_out=none, doubled=none, reviewed=none)
    candidates = cells.assign(score=np.exp(nll), characters=corpus["output"].str.len())[reason.isna()]
    candidates = candidates.assign(rank=rank_in_group(candidates, "score"))
    return set(candidates.loc[select(candidates, method, Wanted(exact_fraction(fraction), seed=1)), "id"])


def select_apart(rows: int, width: int, count: int, distances: tuple[float, ...]) -> list[dict[str, Any]]:
    """Return a line for each method without cells that reads vectors: its time and the process's peak memory."""
    rng = np.random.default_rng(1)
    vectors_ND = unit_vectors(rng.normal(size=(CENTRES, width)).astype(np.float32), rows, rng)
    best_first = rng.permutation(rows)
    ways: dict[str, Way] = {"coverage": partial(farthest_first, vectors_ND, count)}
    for distance in distances:
        ways[f"deita, distance {distance}"] = partial(best_apart, vectors_ND, best_first, count, distance)
    with threadpool_limits(1):
        timed = alternate(ways, rounds=1)
    return [
        {"method": name, "rows": rows, "width": width, "selected": len(took.value), "CPU seconds": seconds(took)}
        | {"peak GiB": took.peak}
        for name, took in timed.items()
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
