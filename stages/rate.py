"""Rate every row's answer. This stage never asks anybody: `python -m tools.ask` does, and it costs money.

data/raw.parquet, data/leaks.parquet, data/duplicates.parquet, models/hub/<rate.model>, <rate.ledger>
    -> data/ratings.parquet (.checkpoints/rate: scores of earlier runs)
"""

import logging
from pathlib import Path
from typing import Literal

import pyarrow as pa

from stages.lib.core.params import Positive, Section
from stages.lib.core.runner import run
from stages.lib.models.loading import Dtype
from stages.lib.rating.request import Request
from stages.lib.scoring.cache import KEY

log = logging.getLogger("stages")
RATINGS = pa.schema(
    [
        ("id", pa.string()),
        (KEY, pa.string()),
        ("answer_tokens", pa.int64()),
        ("nll_answer", pa.float64()),
        ("nll_answer_alone", pa.float64()),
        ("ifd", pa.float64()),
        ("score", pa.float64()),
        ("kind", pa.string()),
        ("score_again", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("reply_tokens", pa.int64()),
    ]
)
"""Row i is row i of raw. What the judge does not give is null."""


class Rate(Section):
    judge: Literal["likelihood", "logprob", "ledger", "none"]
    model: str
    """The role in `fetch_model` of the local judge (`likelihood`, `logprob`)."""
    max_tokens: Positive
    """Instruction and answer, or the judge's prompt, are cut at this many tokens."""
    batch_tokens: Positive
    """Most tokens of a batch; see ppl."""
    dtype: Dtype
    prompt: str
    """What a judge is told (`logprob`, `ledger`): a file of stages/lib/rating/prompts."""
    ledger: str
    """Folder of the replies that were paid for (`ledger`); any folder in git otherwise."""
    request: Request
    """What `ledger` asks for. The ledger finds a reply by these settings and the text."""


class Params(Section):
    threads: Positive
    portable: bool = False
    rate: Rate


def rate(
    params: Params,
    raw: Path,
    leaks: Path,
    duplicates: Path,
    model: Path,
    ledger: Path,
    checkpoints: Path,
    ratings: Path,
) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    run(rate, Params, several=True)
