"""Embed rows with an encoder, as unit vectors.

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
from stages.lib.models.loading import max_positions
from stages.lib.scoring.attention import one_kernel
from stages.lib.scoring.batching import Batch, Tokens, canonical_batches, pad, run_batches, to_device


def unit_vectors(model: PreTrainedModel, sequences: Sequence[Tokens], pooling: str, budget: int) -> NDArray[np.float32]:
    """Return a unit vector for every row [N, D]; batches have canonical shapes and at most `budget` tokens."""
    batches = canonical_batches([len(ids) for ids in sequences], budget, max_positions(model))
    vectors = torch.zeros((len(sequences), model.config.hidden_size), device=model.device)
    bar = progress(batches, len(batches), "embeddings, batches")
    for rows, values in embed_batches(model, sequences, pooling, bar):
        vectors[to_device(torch.tensor(rows), model.device)] = values
    return vectors.cpu().numpy()


@torch.inference_mode()
def embed_batches(
    model: PreTrainedModel, sequences: Sequence[Tokens], pooling: str, batches: Iterable[Batch]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the rows of every batch and their unit vectors [n, D]: float32, on the model's device."""
    filler = model.config.pad_token_id or 0

    def vectors_of(batch: Batch) -> torch.Tensor:
        ids, mask = (to_device(tensor, model.device) for tensor in pad(batch, sequences, filler))
        pooled_BD = pool_tokens(model(input_ids=ids, attention_mask=mask), mask, pooling)
        return F.normalize(pooled_BD.float(), dim=-1)[: len(batch.rows)]

    with one_kernel(model, "padding_mask"):
        yield from run_batches(batches, vectors_of)


def pool_tokens(output: Any, mask_BT: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return [B, D] from the model's output."""
    hidden_BTD: torch.Tensor = output.last_hidden_state
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "mean":
        weights = mask_BT.unsqueeze(-1).float()
        return torch.div((hidden_BTD.float() * weights).sum(1), weights.sum(1))
    pooled_BD: torch.Tensor | None = getattr(output, "pooler_output", None)
    if pooled_BD is None:
        raise UserError("params.yaml: embed.pooling: this encoder has no pooler; use mean or cls")
    return pooled_BD
