"""Negative log-likelihoods of rows under a causal LM.

    B rows of a batch, T tokens, V vocabulary, P predicted positions of a chunk

The head and the cross-entropy run over the predicted positions only, in chunks of one constant size, so that no fp32
[B, T, V] tensor exists, but for models whose logits are no plain head (`split_model`).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from stages.lib.batching import Batch, canonical_batches, pad
from stages.lib.models import positions
from stages.lib.progress import progress

CHUNK = 1024
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From ids and mask [B, T] to what `Head` takes, [B, T, width]."""
Head = Callable[[torch.Tensor], torch.Tensor]
"""From [P, width] to logits [P, V]."""


@torch.inference_mode()
def nll_sums(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], starts: Sequence[int], budget: int, what: str
) -> NDArray[np.float64]:
    """Return for every row [N] the sum of -log p, in nats, of its tokens from `starts` (at least 1) on.

    A row without such a token gets 0. Rows go through batches of canonical shape of at most `budget` tokens.
    """
    lengths = [len(ids) if len(ids) > start else 0 for ids, start in zip(sequences, starts, strict=True)]
    batches = canonical_batches(lengths, budget, positions(model))
    sums = torch.zeros(len(sequences), dtype=torch.float64, device=model.device)
    forward, head = split_model(model, batches, sequences)
    for batch in progress(batches, len(batches), what):
        ids, mask = pad(batch, sequences, filler=0)
        rows, places, targets = predicted(batch, ids, lengths, starts)
        hidden = forward(ids.to(model.device), mask.to(model.device)).flatten(0, 1)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            used = len(targets[part])
            logits_PV = head(hidden[fill(places[part]).to(model.device)])
            nll_P = F.cross_entropy(logits_PV.float(), fill(targets[part]).to(model.device), reduction="none")
            sums.index_add_(0, rows[part].to(model.device), nll_P[:used].double())
    return sums.cpu().numpy()


def predicted(
    batch: Batch, ids: torch.Tensor, lengths: Sequence[int], starts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return, for every predicted token of a batch, its row, the flat place that predicts it, and the token."""
    spans = [(position, row, starts[row], lengths[row]) for position, row in enumerate(batch.rows)]
    rows = torch.cat([torch.full((end - start,), row) for _, row, start, end in spans])
    places = torch.cat([torch.arange(start - 1, end - 1) + p * batch.length for p, _, start, end in spans])
    return rows, places, ids.flatten()[places + 1]


def fill(values: torch.Tensor) -> torch.Tensor:
    """Pad [n] with zeros to [CHUNK], the one shape that the head sees."""
    return F.pad(values, (0, CHUNK - len(values)))


def split_model(
    model: PreTrainedModel, batches: list[Batch], sequences: Sequence[Sequence[int]]
) -> tuple[Forward, Head]:
    """Return the body and the head of the model, or its own forward and no head where these differ.

    Gemma 2, Cohere, Granite and HyperCLOVA X cap or scale their logits after the head, so the first row is tried
    both ways.
    """
    body, head = model.base_model, model.get_output_embeddings()

    def hidden(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return out

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return out

    if not batches or head is None:
        return logits, lambda x: x
    ids, mask = (tensor[:1].to(model.device) for tensor in pad(batches[0], sequences, filler=0))
    same = torch.allclose(head(hidden(ids, mask)), logits(ids, mask), rtol=1e-5, atol=1e-6)
    return (hidden, head) if same else (logits, lambda x: x)
