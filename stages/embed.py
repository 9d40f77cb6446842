"""Embed every instruction: a unit vector.

data/raw.parquet, models/hub/encoder -> data/embeddings.parquet (.checkpoints/embed: vectors known before)
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.lib.core.artifacts import read_table, write_arrow
from stages.lib.core.params import Positive, Section
from stages.lib.core.processes import rank, world
from stages.lib.core.runner import run
from stages.lib.models.loading import Dtype, LoadConfig, check_length, load_model, load_tokenizer, positions, tokenize
from stages.lib.scoring.cache import Batches, Store, complete, stamped
from stages.lib.scoring.fingerprint import compute_fingerprint

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
    """Tokens of an instruction that count, special tokens included."""
    pooling: Pooling
    """`mean` over the tokens, the first token `cls`, or the model's `pooler` output (KoQuality)."""
    batch_tokens: Positive
    dtype: Dtype


class Params(Section):
    threads: Positive
    embed: Embed


def embed(params: Params, raw: Path, encoder: Path, checkpoints: Path, embeddings: Path) -> None:
    corpus = read_table(raw, "id", "instruction")
    place, texts = pd.factorize(corpus["instruction"])
    fingerprint = compute_fingerprint(encoder, params.embed.model_dump() | {"threads": params.threads}, CODE)
    store = Store(checkpoints, fingerprint, vector_columns, ["vector"], embeddings)
    vectors = complete(store, list(texts), lambda missing: embed_texts(missing, encoder, params))
    if vectors is None:
        return
    rows = vectors.take(place).add_column(0, "id", pa.array(corpus["id"]))
    write_arrow(embeddings, stamped(rows, fingerprint))
    width = rows.schema.field("vector").type.list_size
    log.info("%s rows, %s distinct instructions, %d numbers each", f"{len(rows):,}", f"{len(texts):,}", width)


def embed_texts(texts: list[str], encoder: Path, params: Params) -> Batches:
    """Yield the rows of every batch and their unit vectors [n, D]; texts without a token get zeros."""
    settings = params.embed
    tokenizer = load_tokenizer(encoder)
    model = load_model(encoder, LoadConfig(dtype=settings.dtype), params.threads, "AutoModel")

    import torch

    from stages.lib.core.progress import progress
    from stages.lib.scoring.batching import canonical_batches
    from stages.lib.scoring.embedding import embed_batches

    check_length(model, settings.max_tokens, "embed.max_tokens")
    ids = tokenize(tokenizer, texts, max_length=settings.max_tokens)
    silent = [row for row, tokens in enumerate(ids) if not len(tokens)]
    if silent and rank() == 0:
        yield silent, torch.zeros((len(silent), model.config.hidden_size), device=model.device)
    batches = canonical_batches([len(row) for row in ids], settings.batch_tokens, positions(model))[rank() :: world()]
    yield from embed_batches(model, ids, settings.pooling, progress(batches, len(batches), "embeddings, batches"))


def vector_columns(vectors_ND: NDArray[np.float32]) -> dict[str, pa.Array]:
    return {"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])}


if __name__ == "__main__":
    run(embed, Params, several=True)
