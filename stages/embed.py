"""Embed every instruction: a unit vector.

data/raw.parquet, models/hub/encoder -> data/embeddings.parquet

B rows of a batch, T tokens, D width
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from stages.lib.artifacts import read_table, write_table
from stages.lib.models import Dtype, check_length, load_model, load_tokenizer
from stages.lib.params import Positive, Section
from stages.lib.stage import run

log = logging.getLogger("stages")
Pooling = Literal["mean", "cls", "pooler"]


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


def embed(params: Params, raw: Path, encoder: Path, embeddings: Path) -> None:
    corpus = read_table(raw, "id", "instruction")
    place, texts = pd.factorize(corpus["instruction"])
    vectors = encode(list(texts), encoder, params)[place]
    width = vectors.shape[1]
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), width))])
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    write_table(embeddings, {"id": corpus["id"], "vector": column}, schema)
    log.info("%s rows, %s distinct instructions, %d numbers each", f"{len(corpus):,}", f"{len(texts):,}", width)


def encode(texts: list[str], encoder: Path, params: Params) -> NDArray[np.float32]:
    """Return unit vectors [N, D]."""
    settings = params.embed
    tokenizer = load_tokenizer(encoder)
    model = load_model(encoder, "AutoModel", settings.dtype, params.threads)

    from stages.lib.vectors import unit_vectors

    check_length(model, settings.max_tokens, "embed.max_tokens")
    ids = tokenizer(texts, truncation=True, max_length=settings.max_tokens)["input_ids"]
    return unit_vectors(model, ids, settings.pooling, settings.batch_tokens)


if __name__ == "__main__":
    run(embed, Params)
