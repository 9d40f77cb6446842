"""Embed every instruction as a unit vector.

data/raw.parquet, models/hub/encoder -> data/embeddings.parquet (.checkpoints/embed: vectors of earlier runs)
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
from stages.lib.core.runner import run
from stages.lib.scoring.cache import Cache, complete, with_fingerprint
from stages.lib.scoring.encoder import Embed, embed_texts
from stages.lib.scoring.fingerprint import MACHINE, compute_fingerprint

log = logging.getLogger("stages")
LIB = Path(__file__).parent / "lib"
CODE = [
    Path(__file__),
    LIB / "models/loading.py",
    LIB / "scoring/attention.py",
    LIB / "scoring/batching.py",
    LIB / "scoring/embedding.py",
    LIB / "scoring/encoder.py",
]
"""What a vector depends on."""


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
    vectors = complete(cache, list(texts), lambda missing: embed_texts(missing, encoder, params.embed, params.threads))
    if vectors is None:
        return
    rows = vectors.take(place).add_column(0, "id", pa.array(corpus["id"]))
    write_arrow(embeddings, with_fingerprint(rows, fingerprint))
    width = rows.schema.field("vector").type.list_size
    log.info("%s rows, %s distinct instructions, %d numbers each", f"{len(rows):,}", f"{len(texts):,}", width)


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
