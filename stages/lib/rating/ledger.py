"""The replies that were paid for: a folder of immutable Parquet files, each named by the hash of its content.

A reply is found by its payload, so nothing is asked twice. To unite the folders of two people, copy the files.
Marks are read from the replies every time, so a better parser costs nothing.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.lib.core.artifacts import read_table, write_table
from stages.lib.core.errors import UserError
from stages.lib.rating.marks import mark_of
from stages.lib.rating.prompts import messages_of
from stages.lib.rating.request import Request, key_of

TEXTS = ["key", "reply", "finish_reason", "model", "error"]
REPLIES = pa.schema(
    [(name, pa.string()) for name in TEXTS] + [("prompt_tokens", pa.int64()), ("reply_tokens", pa.int64())]
)
"""`key`: of the payload; `reply`: null if the judge gave no text; `model`: what the server calls itself; `error`: why
there is no reply and never will be; the tokens are those that the server counted."""
SAMPLES = 2
"""Most times that a judge is asked about a row; the second reply shows how far it agrees with itself."""
CHUNK = 10_000
"""Rows whose messages are in memory at once."""


def read_ledger(ledger: Path) -> pd.DataFrame:
    """Return one reply for each `key`: of several, a reply goes before an error, then the first file counts.

    Raises UserError if the folder is missing or a file is not what its name says.
    """
    if not ledger.is_dir():
        raise UserError(
            f"rate.ledger: {ledger} is not a folder; run `dvc pull {ledger}`, or create it for a new ledger"
        )
    parts = [read_part(path) for path in sorted(ledger.glob("*.parquet"))]
    replies = pd.concat([REPLIES.empty_table().to_pandas(), *parts], ignore_index=True)
    replies = replies.sort_values("error", key=lambda error: error.notna(), kind="stable")
    return replies.drop_duplicates("key").set_index("key")


def read_part(path: Path) -> pd.DataFrame:
    if content_hash(path) != path.stem:
        raise UserError(
            f"{path}: its content does not match its name, so it is damaged; delete it and run `dvc checkout "
            f"{path.parent}`, or get it again from a commit that has it: `python -m tools.ask --union REV`"
        )
    return read_table(path, *REPLIES.names)


def content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_part(ledger: Path, replies: Iterable[dict[str, Any]]) -> Path:
    """Add a file of replies to the ledger; equal replies make the same file, whatever their order."""
    by_key = {reply["key"]: reply for reply in replies}
    rows = pd.DataFrame([by_key[key] for key in sorted(by_key)], columns=REPLIES.names).astype(object)
    scratch = ledger / ".new.part"
    write_table(scratch, rows.where(rows.notna(), None), REPLIES)
    return scratch.rename(ledger / f"{content_hash(scratch)}.parquet")


def keys_of(corpus: pa.Table, prompt: str, request: Request, sample: int = 0) -> list[str]:
    """Return the key of each row's payload [N]."""
    return [key_of(payload) for payload in payloads_of(corpus, prompt, request, sample)]


def payloads_of(corpus: pa.Table, prompt: str, request: Request, sample: int = 0) -> Iterator[dict[str, Any]]:
    """Yield what a judge is asked about each row [N]."""
    for start in range(0, len(corpus), CHUNK):
        for messages in messages_of(prompt, corpus.slice(start, CHUNK)):
            yield request.payload(messages, sample)


def marks_of(corpus: pa.Table, needed: NDArray[np.bool_], ledger: Path, prompt: str, request: Request) -> pd.DataFrame:
    """Return the mark of each row [N]: score, kind, score_again, prompt_tokens and reply_tokens.

    `corpus` has the columns id, instruction, output and turns; `needed` [N] says which rows must have a reply. What is
    not in the ledger is null. The tokens are those of all replies about a row; rows with equal texts share a reply, and
    only the first of them has its tokens; the others have 0. Raises UserError if a needed row has no reply.
    """
    replies = read_ledger(ledger)
    first, again = (found_replies(replies, keys_of(corpus, prompt, request, sample)) for sample in range(SAMPLES))
    missing = needed & first["kind"].isna().to_numpy()
    if missing.any():
        raise UserError(
            f"rate.ledger: {ledger} has no reply for {missing.sum():,} of {needed.sum():,} rows that need one; run "
            "`python -m tools.ask`, which says what they cost, and with `--yes` asks for them"
        )
    tokens = {name: first[name].add(again[name], fill_value=0) for name in ("prompt_tokens", "reply_tokens")}
    return first[["score", "kind"]].assign(score_again=again["score"], **tokens)


def found_replies(replies: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return score, kind and tokens of the reply with each key [N]; null if there is none."""
    found = replies.reindex(keys)
    there = found.index.isin(replies.index)
    texts = found[["reply", "finish_reason", "error"]].astype(object)
    texts = texts.where(texts.notna(), None).to_numpy()
    marks = [mark_of(*text) if known else (None, None) for text, known in zip(texts, there, strict=True)]
    table = pd.DataFrame(marks, columns=["score", "kind"], dtype=object).astype({"score": "float64"})
    repeated = pd.Index(keys).duplicated()
    for name in ("prompt_tokens", "reply_tokens"):
        tokens = pd.array(found[name], dtype="Int64")
        table[name] = tokens
        table.loc[repeated & there, name] = 0
    return table
