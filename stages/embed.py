"""Embed every instruction as a unit vector.

data/raw.parquet, models/hub/encoder -> data/embeddings.parquet (.checkpoints/embed: vectors of earlier runs)
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.lib.core.artifacts import read_table, write_arrow
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section
from stages.lib.core.processes import rank, world
from stages.lib.core.runner import run
from stages.lib.models.loading import (
    POOLER,
    Dtype,
    LoadConfig,
    check_length,
    load_model,
    load_tokenizer,
    max_positions,
    tokenize,
)
from stages.lib.scoring.cache import Batches, Cache, complete, with_fingerprint
from stages.lib.scoring.fingerprint import MACHINE, compute_fingerprint

log = logging.getLogger("stages")
Pooling = Literal["mean", "cls", "pooler"]
LIB = Path(__file__).parent / "lib"
CODE = [
    Path(__file__),
    LIB / "models/loading.py",
    LIB / "scoring/attention.py",
    LIB / "scoring/batching.py",
    LIB / "scoring/embedding.py",
]
"""What a vector depends on."""


class Embed(Section):
    max_tokens: Positive
    """An instruction is cut at this many tokens, special tokens included."""
    pooling: Pooling
    """`mean` of the tokens' vectors; `cls`, the first token's; or the model's `pooler` output (KoQuality)."""
    batch_tokens: Positive
    """Most tokens of a batch; see ppl."""
    dtype: Dtype


class Params(Section):
    threads: Positive
    portable: bool = False
    embed: Embed


def embed(params: Params, raw: Path, encoder: Path, checkpoints: Path, embeddings: Path) -> None:
    corpus = read_table(raw, "id", "instruction")
    place, texts = pd.factorize(corpus["instruction"])
    settings = params.embed.model_dump() | params.model_dump(include=MACHINE)
    fingerprint = compute_fingerprint(encoder, settings, CODE)
    cache = Cache(checkpoints, fingerprint, lambda found: vector_columns(found, encoder), ["vector"], embeddings)
    vectors = complete(cache, list(texts), lambda missing: embed_texts(missing, encoder, params))
    if vectors is None:
        return
    rows = vectors.take(place).add_column(0, "id", pa.array(corpus["id"]))
    write_arrow(embeddings, with_fingerprint(rows, fingerprint))
    width = rows.schema.field("vector").type.list_size
    log.info("%s rows, %s distinct instructions, %d numbers each", f"{len(rows):,}", f"{len(texts):,}", width)


def embed_texts(texts: list[str], encoder: Path, params: Params) -> Batches:
    """Yield for every batch the indices of its texts and their unit vectors [n, D], zeros for an empty text."""
    settings = params.embed
    tokenizer = load_tokenizer(encoder)
    unused = () if settings.pooling == "pooler" else POOLER
    model = load_model(encoder, LoadConfig(dtype=settings.dtype), params.threads, "AutoModel", unused)

    import torch

    from stages.lib.core.progress import progress
    from stages.lib.scoring.batching import canonical_batches
    from stages.lib.scoring.embedding import embed_batches

    check_length(model, settings.max_tokens, "embed.max_tokens")
    ids = tokenize(tokenizer, texts, max_length=settings.max_tokens)
    empty = [row for row, tokens in enumerate(ids) if not len(tokens)]
    if empty and rank() == 0:
        yield empty, torch.zeros((len(empty), model.config.hidden_size), device=model.device)
    batches = canonical_batches([len(row) for row in ids], settings.batch_tokens, max_positions(model))[
        rank() :: world()
    ]
    yield from embed_batches(model, ids, settings.pooling, progress(batches, len(batches), "embeddings, batches"))


def vector_columns(vectors_ND: NDArray[np.float32], encoder: Path) -> dict[str, pa.Array]:
    """Return the column that is kept. Raises UserError if a number is not finite."""
    bad = int((~np.isfinite(vectors_ND).all(axis=1)).sum())
    if bad:
        raise UserError(
            f"{encoder}: {bad} of {len(vectors_ND)} vectors are not finite in its dtype; try embed.dtype: fp32"
        )
    return {"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])}


if __name__ == "__main__":
    run(embed, Params, several=True)
