"""Score every instruction by its perplexity under the scorer.

    data/raw.parquet, models/hub/scorer -> data/ppl.parquet (.checkpoints/ppl: scores of earlier runs)

Perplexity is exp of the mean negative log-likelihood, in nats, of the predicted tokens. The text is the instruction
without its output, cut at `max_tokens`, without special tokens (nayohan/KoQuality, generate_perplexity.py).
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.lib.core.artifacts import read_table, write_arrow
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section
from stages.lib.core.processes import rank, world
from stages.lib.core.runner import run
from stages.lib.models.loading import Dtype, LoadConfig, check_length, load_model, load_tokenizer, tokenize
from stages.lib.scoring.cache import KEY, Batches, Cache, complete, with_fingerprint
from stages.lib.scoring.fingerprint import MACHINE, compute_fingerprint

log = logging.getLogger("stages")
LIB = Path(__file__).parent / "lib"
CODE = [
    Path(__file__),
    LIB / "models/loading.py",
    LIB / "scoring/attention.py",
    LIB / "scoring/batching.py",
    LIB / "scoring/log_likelihood.py",
]
"""What a score depends on."""
PPL = pa.schema(
    [("id", pa.string()), (KEY, pa.string()), ("tokens", pa.int64()), ("nll", pa.float64()), ("ppl", pa.float64())]
)


class Ppl(Section):
    max_tokens: Positive
    """An instruction is cut at this many tokens."""
    add_bos: bool
    """Whether to predict the first token too, from the beginning-of-text token."""
    batch_tokens: Positive
    """Most tokens of a batch. It changes the last bits of the result. A CPU or a small corpus needs few."""
    dtype: Dtype


class Params(Section):
    threads: Positive
    portable: bool = False
    ppl: Ppl


def ppl(params: Params, raw: Path, scorer: Path, checkpoints: Path, ppl: Path) -> None:
    corpus = read_table(raw, "id", "instruction")
    place, texts = pd.factorize(corpus["instruction"])
    settings = params.ppl.model_dump() | params.model_dump(include=MACHINE)
    fingerprint = compute_fingerprint(scorer, settings, CODE)
    cache = Cache(checkpoints, fingerprint, lambda scores: score_columns(scores, scorer), ["tokens", "nll", "ppl"], ppl)
    scores = complete(cache, list(texts), lambda missing: score(missing, scorer, params))
    if scores is None:
        return
    rows = scores.take(place).add_column(0, "id", pa.array(corpus["id"]))
    write_arrow(ppl, with_fingerprint(rows.cast(PPL), fingerprint))
    median = rows["ppl"].to_pandas().median()
    log.info(
        "%s rows, %s distinct instructions, %s predicted tokens; perplexity: median %.1f",
        f"{len(rows):,}", f"{len(texts):,}", f"{scores['tokens'].to_numpy().sum():,}", median,
    )  # fmt: skip


def score(texts: list[str], scorer: Path, params: Params) -> Batches:
    """Yield for every batch the indices of its texts, their predicted tokens and mean NLL [n, 2]."""
    settings = params.ppl
    tokenizer = load_tokenizer(scorer)
    model = load_model(scorer, LoadConfig(dtype=settings.dtype), params.threads)

    import torch

    from stages.lib.core.progress import progress
    from stages.lib.scoring.batching import to_device
    from stages.lib.scoring.log_likelihood import predicting_batches, score_batches

    check_length(model, settings.max_tokens + settings.add_bos, "ppl.max_tokens")
    ids = tokenize(tokenizer, texts, add_special_tokens=False, max_length=settings.max_tokens)
    if settings.add_bos:
        if tokenizer.bos_token_id is None:
            raise UserError(f"params.yaml: ppl.add_bos: the tokenizer of {scorer} has no bos token")
        ids = [np.concatenate([[tokenizer.bos_token_id], row]) for row in ids]
    starts = [1] * len(ids)
    unpredicted = [row for row, tokens in enumerate(ids) if len(tokens) < 2]
    if unpredicted and rank() == 0:
        yield unpredicted, torch.zeros((len(unpredicted), 2), dtype=torch.float64, device=model.device)
    batches = predicting_batches(model, ids, starts, settings.batch_tokens)[rank() :: world()]
    for rows, sums in score_batches(model, ids, starts, progress(batches, len(batches), "perplexity, batches")):
        tokens = to_device(torch.tensor([len(ids[row]) - 1 for row in rows], dtype=torch.float64), model.device)
        yield rows, torch.stack([tokens, sums / tokens], dim=1)


def score_columns(scores: NDArray[np.float64], scorer: Path) -> dict[str, pa.Array]:
    """Return tokens, nll and ppl; nll and ppl are null if no token is predicted."""
    tokens, nll = scores.T
    bad = int((~np.isfinite(nll)).sum())
    if bad:
        raise UserError(f"{scorer}: {bad} of {len(nll)} perplexities are not finite in its dtype; try ppl.dtype: fp32")
    without = tokens == 0
    return {
        "tokens": pa.array(tokens.astype(np.int64)),
        "nll": pa.array(nll, mask=without),
        "ppl": pa.array(np.exp(nll), mask=without),
    }


if __name__ == "__main__":
    run(ppl, Params, several=True)
