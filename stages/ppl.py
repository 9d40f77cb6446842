"""Score every instruction: its perplexity under the scorer.

    data/raw.parquet, models/hub/scorer -> data/ppl.parquet

Perplexity is exp of the mean negative log-likelihood, in nats, of the predicted tokens of the instruction alone, cut
at `max_tokens`, without special tokens (KoQuality: nayohan/KoQuality, generate_perplexity.py).
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.lib.artifacts import read_table, write_table
from stages.lib.models import Dtype, check_length, load_model, load_tokenizer
from stages.lib.params import Positive, Section
from stages.lib.stage import run
from stages.lib.stop import Stop

log = logging.getLogger("stages")
PPL = pa.schema([("id", pa.string()), ("tokens", pa.int64()), ("nll", pa.float64()), ("ppl", pa.float64())])


class Ppl(Section):
    max_tokens: Positive
    """Tokens of an instruction that count."""
    add_bos: bool
    """Whether the first token is predicted too, from the beginning-of-text token."""
    batch_tokens: Positive
    """Tokens of a batch: part of the result's last bits, so tracked. Small for a CPU or a small corpus."""
    dtype: Dtype


class Params(Section):
    threads: Positive
    ppl: Ppl


def ppl(params: Params, raw: Path, scorer: Path, ppl: Path) -> None:
    corpus = read_table(raw, "id", "instruction")
    texts = corpus["instruction"].drop_duplicates()
    scores = score(list(texts), scorer, params).set_index(texts)
    rows = scores.loc[corpus["instruction"]].reset_index(drop=True)
    write_table(ppl, rows.assign(id=corpus["id"]), PPL)
    log.info(
        "%s rows, %s distinct instructions, %s predicted tokens; perplexity: median %.1f",
        f"{len(rows):,}", f"{len(scores):,}", f"{scores['tokens'].sum():,}", rows["ppl"].median(),
    )  # fmt: skip


def score(texts: list[str], scorer: Path, params: Params) -> pd.DataFrame:
    """Return tokens, nll and ppl of every text; both null where no token is predicted."""
    settings = params.ppl
    tokenizer = load_tokenizer(scorer)
    model = load_model(scorer, "AutoModelForCausalLM", settings.dtype, params.threads)

    from stages.lib.scoring import nll_sums

    check_length(model, settings.max_tokens + settings.add_bos, "ppl.max_tokens")
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=settings.max_tokens)["input_ids"]
    if settings.add_bos:
        if tokenizer.bos_token_id is None:
            raise Stop(f"params.yaml: ppl.add_bos: the tokenizer of {scorer} has no bos token")
        ids = [[tokenizer.bos_token_id, *row] for row in ids]
    tokens = np.array([max(len(row) - 1, 0) for row in ids])
    sums = nll_sums(model, ids, [1] * len(ids), settings.batch_tokens, "perplexity, batches")
    lost = int((~np.isfinite(sums)).sum())
    if lost:
        raise Stop(
            f"{scorer}: {lost} of {len(sums)} perplexities are no numbers in {settings.dtype}; try ppl.dtype: fp32"
        )
    with np.errstate(invalid="ignore"):
        nll = sums / tokens
    return pd.DataFrame({"tokens": tokens, "nll": nll, "ppl": np.exp(nll)})


if __name__ == "__main__":
    run(ppl, Params)
