"""Negative log-likelihoods of rows under a causal LM.

    B rows of a batch, T tokens, V vocabulary, P predicted positions of a chunk

The head and the cross-entropy run over the predicted positions only, in chunks of one constant size. So no fp32
[B, T, V] tensor is ever built, except for models that change their logits after the head (`split_model`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from stages.lib.core.progress import progress
from stages.lib.models.loading import max_positions
from stages.lib.scoring.attention import one_kernel
from stages.lib.scoring.batching import Batch, Tokens, canonical_batches, pad, run_batches, to_device

CHUNK = 1024
"""Predicted positions per call of the head."""
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From ids and mask [B, T] to the input of `Head`, [B, T, width]."""
Head = Callable[[torch.Tensor], torch.Tensor]
"""From [P, width] to logits [P, V]."""


def nll_sums(
    model: PreTrainedModel, sequences: Sequence[Tokens], starts: Sequence[int], budget: int, what: str
) -> NDArray[np.float64]:
    """Return for every row [N] the sum of -log p, in nats, over its tokens from `starts` (at least 1) on.

    A row without such a token gets 0. Batches have canonical shapes and at most `budget` tokens. `what` names the
    work in the progress bar.
    """
    sums = torch.zeros(len(sequences), dtype=torch.float64, device=model.device)
    batches = predicting_batches(model, sequences, starts, budget)
    for rows, values in score_batches(model, sequences, starts, progress(batches, len(batches), what)):
        sums[to_device(torch.tensor(rows), model.device)] = values
    return sums.cpu().numpy()


def predicting_batches(
    model: PreTrainedModel, sequences: Sequence[Tokens], starts: Sequence[int], budget: int
) -> list[Batch]:
    """Return batches of the rows that have a token to predict."""
    lengths = [len(ids) if len(ids) > start else 0 for ids, start in zip(sequences, starts, strict=True)]
    return canonical_batches(lengths, budget, max_positions(model))


@torch.inference_mode()
def score_batches(
    model: PreTrainedModel, sequences: Sequence[Tokens], starts: Sequence[int], batches: Iterable[Batch]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the rows of every batch and their sums of -log p: in nats, float64, on the model's device."""
    forward, head = split_model(model, sequences)

    def sums_of(batch: Batch) -> torch.Tensor:
        ids, mask = pad(batch, sequences, filler=0)
        places = predicting_places(batch, sequences, starts)
        targets, sources = (to_device(pad_to_chunks(t), model.device) for t in (ids.flatten()[places + 1], places))
        hidden = forward(to_device(ids, model.device), to_device(mask, model.device)).flatten(0, 1)
        nll = torch.zeros(batch.height * batch.length, dtype=torch.float32, device=model.device)
        for start in range(0, len(places), CHUNK):
            source_P, used = sources[start : start + CHUNK], min(CHUNK, len(places) - start)
            logits_PV = head(hidden[source_P])
            nll_P = F.cross_entropy(logits_PV.float(), targets[start : start + CHUNK], reduction="none")
            nll[source_P[:used]] = nll_P[:used]
        return nll.view(batch.height, batch.length).double().sum(1)[: len(batch.rows)]

    with one_kernel(model, "causal"):
        yield from run_batches(batches, sums_of)


def predicting_places(batch: Batch, sequences: Sequence[Tokens], starts: Sequence[int]) -> torch.Tensor:
    """Return the flat positions in the batch whose hidden states predict the tokens that count."""
    spans = [(at * batch.length, starts[row], len(sequences[row])) for at, row in enumerate(batch.rows)]
    return torch.from_numpy(np.concatenate([np.arange(at + start - 1, at + end - 1) for at, start, end in spans]))


def pad_to_chunks(values: torch.Tensor) -> torch.Tensor:
    """Pad [n] with zeros to a multiple of CHUNK, so that every call of the head has one shape."""
    return F.pad(values, (0, -len(values) % CHUNK))


def split_model(model: PreTrainedModel, sequences: Sequence[Tokens]) -> tuple[Forward, Head]:
    """Return the model's body and head; or, if those do not give its logits, its whole forward pass and no head.

    Gemma 2, Cohere, Granite and HyperCLOVA X cap or scale their logits after the head. One row is run both ways to
    find out.
    """
    body, head = model.base_model, model.get_output_embeddings()

    def hidden(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return out

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return out

    row = next((row for row in sequences if len(row)), None)
    if row is None or head is None:
        return logits, lambda x: x
    ids = torch.as_tensor(row, dtype=torch.long, device=model.device)[None]
    mask = torch.ones_like(ids)
    same = torch.allclose(head(hidden(ids, mask)), logits(ids, mask), rtol=1e-5, atol=1e-6)
    return (hidden, head) if same else (logits, lambda x: x)
