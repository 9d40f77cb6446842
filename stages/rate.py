"""Rate every row's answer. This stage never asks anybody: `python -m tools.ask` does, and it costs money.

    data/raw.parquet, data/leaks.parquet, data/duplicates.parquet, models/hub/<rate.model>, <rate.ledger>
        -> data/ratings.parquet (.checkpoints/rate: scores of earlier runs)

Of a conversation, the last answer is rated, and all turns before it are what was asked.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.lib.core.artifacts import read_arrow, read_table, write_arrow
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section
from stages.lib.core.processes import rank
from stages.lib.core.runner import run
from stages.lib.models.loading import Dtype, LoadConfig, check_length, load_model, load_tokenizer
from stages.lib.rating.request import Request
from stages.lib.scoring.cache import KEY, Batches, Cache, complete, with_fingerprint
from stages.lib.scoring.fingerprint import MACHINE, compute_fingerprint
from stages.lib.selection.candidates import may_be_candidates

log = logging.getLogger("stages")
LIB = Path(__file__).parent / "lib"
CODE = [
    Path(__file__),
    LIB / "models/loading.py",
    LIB / "scoring/answers.py",
    LIB / "scoring/attention.py",
    LIB / "scoring/batching.py",
    LIB / "scoring/labels.py",
    LIB / "scoring/log_likelihood.py",
    LIB / "text/bos.py",
    LIB / "text/chat_format.py",
    LIB / "text/conversations.py",
    LIB / "text/dates.py",
]
"""What a score depends on."""
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
"""Row i is row i of raw. What the judge does not give is null.

`answer_tokens`: scored tokens of the answer; `nll_answer`: mean negative log-likelihood of the answer after its
instruction, in nats per token; `nll_answer_alone`: without the instruction; `ifd`: the ratio of the two perplexities,
exp(nll_answer - nll_answer_alone) (Li et al. 2023, arXiv 2308.12032); `score`: the mark, from 0 to 10; `kind`: how the
reply was read; `score_again`: the mark of a second reply, for agreement; `prompt_tokens`, `reply_tokens`: what was paid
for."""
SETTINGS = {"judge", "max_tokens", "batch_tokens", "dtype"}
"""The params of `rate` that change a local judge's scores; the prompt is in the text that is scored."""


class Rate(Section):
    judge: Literal["likelihood", "logprob", "ledger", "none"]
    model: str
    """The role in `fetch_model` of the local judge (`likelihood`, `logprob`)."""
    max_tokens: Positive
    """`likelihood`: instruction and answer are cut at this many tokens; `logprob`: a longer prompt gets no mark."""
    batch_tokens: Positive
    """Most tokens of a batch; see ppl."""
    dtype: Dtype
    prompt: str
    """What a judge is told (`logprob`, `ledger`): a file of stages/lib/rating/prompts."""
    ledger: str
    """Folder of the replies that were paid for (`ledger`); for the other judges, any folder in git."""
    request: Request
    """How the judge is asked (`ledger`). A reply is found by these settings and the text."""


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
    corpus, settings = read_arrow(raw, "id", "instruction", "output", "turns"), params.rate
    if settings.judge in JUDGES:
        found = by_model(params, corpus, model, checkpoints, ratings)
    elif rank():
        return
    elif settings.judge == "ledger":
        found = by_ledger(settings, corpus, leaks, duplicates, ledger)
    else:
        found = corpus.select([])
    if found is not None:
        write_arrow(ratings, with_every_column(corpus["id"], found))
        log_ratings(settings.judge, found.to_pandas(), len(corpus))


def by_model(params: Params, corpus: pa.Table, model: Path, checkpoints: Path, ratings: Path) -> pa.Table | None:
    """Return what a local judge says about each row, with its key; None in every process but the first."""
    judge = JUDGES[params.rate.judge]
    place, texts = pd.factorize(np.array(judge.texts(corpus, params.rate), dtype=object))
    settings = params.rate.model_dump(include=SETTINGS) | params.model_dump(include=MACHINE)
    fingerprint = compute_fingerprint(model, settings, CODE)
    cache = Cache(checkpoints, fingerprint, lambda scores: judge.columns(scores, model), judge.names, ratings)
    scores = complete(cache, list(texts), lambda missing: judge.score(missing, model, params))
    return None if scores is None else with_fingerprint(scores.take(place), fingerprint)


def pairs_of(corpus: pa.Table, _settings: Rate) -> list[str]:
    """Return each row's [what was asked, answer] as JSON."""
    asked, answered = corpus["instruction"].to_pylist(), corpus["output"].to_pylist()
    for row, turns in enumerate(corpus["turns"].to_pylist()):
        if turns:
            asked[row] = "\n".join(turn["text"] for turn in turns[:-1])
    return [json.dumps(pair, ensure_ascii=False) for pair in zip(asked, answered, strict=True)]


def prompts_of(corpus: pa.Table, settings: Rate) -> list[str]:
    """Return the messages that ask for each row's mark, as JSON."""
    from stages.lib.rating.prompts import messages_of

    return [json.dumps(messages, ensure_ascii=False) for messages in messages_of(settings.prompt, corpus)]


def score_pairs(texts: list[str], model: Path, params: Params) -> Batches:
    """Yield for every batch the indices of its pairs, and their answer tokens and two mean NLLs [n, 3]."""
    settings = params.rate
    tokenizer = load_tokenizer(model)
    lm = load_model(model, LoadConfig(dtype=settings.dtype), params.threads)

    from stages.lib.scoring.answers import encode_answers, score_answers

    check_length(lm, settings.max_tokens, "rate.max_tokens")
    asked, answered = zip(*map(json.loads, texts), strict=True)
    answers = encode_answers(tokenizer, asked, answered, settings.max_tokens)
    yield from score_answers(lm, answers, settings.batch_tokens)


def score_prompts(texts: list[str], model: Path, params: Params) -> Batches:
    """Yield for every batch the indices of its prompts, whether each was read, and its mark [n, 2].

    A prompt that is too long is not read.
    """
    settings = params.rate
    tokenizer = load_tokenizer(model)
    lm = load_model(model, LoadConfig(dtype=settings.dtype), params.threads)

    import torch

    from stages.lib.scoring.labels import encode_prompts, expected_marks, label_tokens

    labels = label_tokens(tokenizer)
    check_length(lm, settings.max_tokens + max(map(len, labels)), "rate.max_tokens and a mark")
    ids = encode_prompts(tokenizer, [json.loads(text) for text in texts], settings.max_tokens)
    cut = [row for row, tokens in enumerate(ids) if len(tokens) > settings.max_tokens]
    if cut and rank() == 0:
        yield cut, torch.zeros((len(cut), 2), dtype=torch.float64, device=lm.device)
    for row in cut:
        ids[row] = []
    for rows, marks in expected_marks(lm, ids, labels, settings.batch_tokens):
        yield rows, torch.stack([torch.ones_like(marks), marks], dim=1)


def likelihood_columns(scores: NDArray[np.float64], model: Path) -> dict[str, pa.Array]:
    """Return the columns of `likelihood`; null if the answer has no token."""
    tokens, given, alone = scores.T
    require_finite(given + alone, model)
    values = {"nll_answer": given, "nll_answer_alone": alone, "ifd": np.exp(given - alone)}
    return {
        "answer_tokens": pa.array(tokens.astype(np.int64)),
        **{name: pa.array(value, mask=tokens == 0) for name, value in values.items()},
    }


def mark_columns(scores: NDArray[np.float64], model: Path) -> dict[str, pa.Array]:
    """Return the columns of `logprob`; no score if the prompt was not read."""
    was_read, marks = scores.T
    require_finite(marks, model)
    return {"score": pa.array(marks, mask=was_read == 0), "kind": pa.array(np.where(was_read, "ok", "cut"))}


def require_finite(scores: NDArray[np.float64], model: Path) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise UserError(f"{model}: {bad} of {len(scores)} ratings are not finite in its dtype; try rate.dtype: fp32")


class Judge(NamedTuple):
    """How a local model rates; see `by_model`."""

    texts: Callable[[pa.Table, Rate], list[str]]
    score: Callable[[list[str], Path, Params], Batches]
    columns: Callable[[NDArray[np.float64], Path], dict[str, pa.Array]]
    names: list[str]
    """Of the columns."""


LIKELIHOOD = ["answer_tokens", "nll_answer", "nll_answer_alone", "ifd"]
JUDGES = {
    "likelihood": Judge(pairs_of, score_pairs, likelihood_columns, LIKELIHOOD),
    "logprob": Judge(prompts_of, score_prompts, mark_columns, ["score", "kind"]),
}


def by_ledger(settings: Rate, corpus: pa.Table, leaks: Path, duplicates: Path, ledger: Path) -> pa.Table:
    """Return the marks that were paid for; a row that may become a candidate must have one."""
    from stages.lib.rating.ledger import marks_of

    rows = corpus.select(["id", "instruction"]).to_pandas()
    flags = [read_table(path, "id", "drop") for path in (leaks, duplicates)]
    needed = may_be_candidates(rows["instruction"], rows["id"], *flags)
    marks = marks_of(corpus, needed, ledger, settings.prompt, settings.request)
    return pa.table({name: pa.array(marks[name], from_pandas=True) for name in marks.columns})


def with_every_column(ids: pa.ChunkedArray, found: pa.Table) -> pa.Table:
    """Return `RATINGS`; what the judge did not give is null."""
    columns: dict[str, Any] = {name: pa.nulls(len(ids), RATINGS.field(name).type) for name in RATINGS.names}
    columns |= {name: found[name].cast(RATINGS.field(name).type) for name in found.column_names}
    return pa.table(columns | {"id": ids}, schema=RATINGS.with_metadata(found.schema.metadata))


def log_ratings(judge: str, found: pd.DataFrame, rows: int) -> None:
    log.info("%s rows, judge: %s", f"{rows:,}", judge)
    for name in ("nll_answer", "ifd", "score"):
        if name in found:
            low, middle, high = found[name].astype(float).quantile([0.05, 0.5, 0.95])
            log.info(
                "%s: median %.3f, nine tenths between %.3f and %.3f; %s rows have none",
                name, middle, low, high, f"{found[name].isna().sum():,}",
            )  # fmt: skip
    if "kind" in found:
        kinds = found["kind"].fillna("no reply").value_counts().sort_index()
        log.info("kinds: %s", ", ".join(f"{kind} {count:,}" for kind, count in kinds.items()))


if __name__ == "__main__":
    run(rate, Params, several=True)
