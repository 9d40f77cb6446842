"""Texts to unit vectors, as the section `embed` says. torch is imported only when a text is embedded."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.lib.core.params import Positive, Section
from stages.lib.core.processes import rank, world
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
from stages.lib.scoring.cache import Batches

Pooling = Literal["mean", "cls", "pooler"]


class Embed(Section):
    max_tokens: Positive
    """An instruction is cut at this many tokens, special tokens included."""
    pooling: Pooling
    """`mean` of the tokens' vectors; `cls`, the first token's; or the model's `pooler` output (KoQuality)."""
    batch_tokens: Positive
    """Most tokens of a batch; see ppl."""
    dtype: Dtype


def embed_texts(texts: list[str], encoder: Path, settings: Embed, threads: int) -> Batches:
    """Yield for every batch the indices of its texts and their unit vectors [n, D], zeros for an empty text."""
    tokenizer = load_tokenizer(encoder)
    unused = () if settings.pooling == "pooler" else POOLER
    model = load_model(encoder, LoadConfig(dtype=settings.dtype), threads, "AutoModel", unused)

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


def embed_together(texts: list[str], encoder: Path, settings: Embed, threads: int) -> NDArray[np.float32]:
    """Return the unit vectors of at least one text [N, D]."""
    parts = [(rows, values.cpu().numpy()) for rows, values in embed_texts(texts, encoder, settings, threads)]
    vectors_ND = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
    for rows, values in parts:
        vectors_ND[rows] = values
    return vectors_ND
