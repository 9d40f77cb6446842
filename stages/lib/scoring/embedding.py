"""Unit vectors of rows under an encoder.

B rows of a batch, T tokens, D width
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from stages.lib.core.errors import UserError
from stages.lib.core.progress import progress
from stages.lib.models.loading import positions
from stages.lib.scoring.attention import one_kernel
from stages.lib.scoring.batching import Batch, Tokens, canonical_batches, pad, run_batches, send


def unit_vectors(model: PreTrainedModel, sequences: Sequence[Tokens], pooling: str, budget: int) -> NDArray[np.float32]:
    """Return one vector of length 1 for every row [N, D]; batches have canonical shapes, at most `budget` tokens."""
    batches = canonical_batches([len(ids) for ids in sequences], budget, positions(model))
    vectors = torch.zeros((len(sequences), model.config.hidden_size), device=model.device)
    bar = progress(batches, len(batches), "embeddings, batches")
    for rows, values in embed_batches(model, sequences, pooling, bar):
        vectors[send(torch.tensor(rows), model.device)] = values
    return vectors.cpu().numpy()


@torch.inference_mode()
def embed_batches(
    model: PreTrainedModel, sequences: Sequence[Tokens], pooling: str, batches: Iterable[Batch]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the rows of every batch and their vectors of length 1 [n, D], float32, on the model's device."""
    filler = model.config.pad_token_id or 0

    def vectors_of(batch: Batch) -> torch.Tensor:
        ids, mask = (send(tensor, model.device) for tensor in pad(batch, sequences, filler))
        pooled_BD = pooled(model(input_ids=ids, attention_mask=mask), mask, pooling)
        return F.normalize(pooled_BD.float(), dim=-1)[: len(batch.rows)]

    with one_kernel(model, "padding_mask"):
        yield from run_batches(batches, vectors_of)


def pooled(output: Any, mask_BT: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return [B, D] from the model's output."""
    hidden_BTD: torch.Tensor = output.last_hidden_state
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "mean":
        weights = mask_BT.unsqueeze(-1).float()
        return torch.div((hidden_BTD.float() * weights).sum(1), weights.sum(1))
    pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
    if pooled is None:
        raise UserError("params.yaml: embed.pooling: this encoder has no pooler; use mean or cls")
    return pooled
