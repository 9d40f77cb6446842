"""How much of the selected 1 % another precision, or another first token, would change.

    python -m benchmarks.selection [data/raw.parquet models/hub/scorer models/hub/encoder]

Perplexities in bf16 or with `add_bos` over the cells of fp32 vectors, and cells of bf16 vectors under the
perplexities in fp32, each against fp32 throughout.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.measure import machine, table
from stages.lib.core.artifacts import read_table
from stages.lib.models.loading import Dtype, load_model, load_tokenizer
from stages.lib.selection.cells import Cluster, find_cells
from stages.lib.selection.methods import Method, pool, select

DEFAULT = ["data/raw.parquet", "models/hub/scorer", "models/hub/encoder"]
Case = tuple[pd.Series, pd.DataFrame]
"""Mean negative log-likelihoods and cells."""
METHODS: tuple[Method, ...] = ("spread", "steady")
MOST, BUDGET = 512, 1024
CELLS = Cluster(length_groups=5, clusters=20, small_groups="stop", algorithm="lloyd", init="hashed", n_init=1, seed=1)


def main(arguments: list[str]) -> None:
    raw, scorer, encoder = map(Path, arguments or DEFAULT)
    corpus = read_table(raw)
    print(f"{table(compare(corpus, scorer, encoder, CELLS, fraction=0.01))}\n\n{machine()}")


def compare(
    corpus: pd.DataFrame, scorer: Path, encoder: Path, settings: Cluster, fraction: float
) -> list[dict[str, Any]]:
    """Return a line for every change: how its perplexities rank, and what share of fp32's rows stays selected."""
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
        | {f"{method}: rows that stay": stays(corpus, first, case, method, fraction) for method in METHODS}
        for name, case in cases.items()
    ]


def stays(corpus: pd.DataFrame, first: Case, other: Case, method: Method, fraction: float) -> float:
    """Return the share of the rows selected by the first that the other selects too."""
    one, two = (selected(corpus, *case, method, fraction) for case in (first, other))
    return len(one & two) / len(one)


def score(corpus: pd.DataFrame, scorer: Path, dtype: Dtype, add_bos: bool) -> pd.Series:
    """Return the mean negative log-likelihood of every row, NaN where no token is predicted."""
    from stages.lib.scoring.log_likelihood import nll_sums

    place, texts = pd.factorize(corpus["instruction"])
    tokenizer, model = load_tokenizer(scorer), load_model(scorer, "AutoModelForCausalLM", dtype, threads=1)
    ids = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=MOST)["input_ids"]
    ids = [[tokenizer.bos_token_id, *row] for row in ids] if add_bos else ids
    sums = nll_sums(model, ids, [1] * len(ids), BUDGET, "perplexity, batches")
    tokens = np.array([len(row) - 1 for row in ids])
    return pd.Series(np.where(tokens > 0, sums / np.maximum(tokens, 1), np.nan)[place])


def embed(corpus: pd.DataFrame, encoder: Path, dtype: Dtype) -> NDArray[np.float32]:
    from stages.lib.scoring.embedding import unit_vectors

    place, texts = pd.factorize(corpus["instruction"])
    tokenizer, model = load_tokenizer(encoder), load_model(encoder, "AutoModel", dtype, threads=1)
    ids = tokenizer(list(texts), truncation=True, max_length=MOST // 2)["input_ids"]
    return unit_vectors(model, ids, "mean", BUDGET)[place]


def selected(corpus: pd.DataFrame, nll: pd.Series, cells: pd.DataFrame, method: Method, fraction: float) -> set[str]:
    """Return the ids of the rows that a method takes."""
    rows = pool(corpus, np.exp(nll), cells)
    candidates = rows[rows["reason"].isna()]
    return set(candidates.loc[select(candidates, method, "exact", fraction, seed=1), "id"])


if __name__ == "__main__":
    main(sys.argv[1:])
