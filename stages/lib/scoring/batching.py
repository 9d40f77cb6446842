"""Batches of canonical shape, so that a row's bits never depend on its neighbours.

The length and the number of rows of a batch follow from a row's own token count and the budget only; dummy rows fill
the last batch of each length. So a row always runs through kernels of the same shape, whatever else is scored with it,
before it or in another process. Lengths are rounded up by steps of an eighth of the power of two below them, which on
a corpus of 375 thousand rows adds 4 to 9 % of padding and dummy rows.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.lib.core.errors import UserError

Tokens = Sequence[int] | NDArray[Any]
TILE = 16
"""A matrix product computes its rows in tiles. With `portable`, MKL rounds the rows of an incomplete last tile in
another way, so a batch has none."""


class Batch(NamedTuple):
    rows: list[int]
    """Indices of its rows, which come first; the rest are dummy rows."""
    height: int
    length: int


def canonical_length(tokens: int) -> int:
    """Round up to a multiple of an eighth of the power of two below, or of 2 if that is larger."""
    step = max(2, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step


def canonical_height(length: int, budget: int) -> int:
    """Return the most rows of this length that fit, with a multiple of TILE tokens in all if that many fit."""
    height, step = max(1, budget // length), TILE // gcd(TILE, length)
    return height - height % step if height >= step else height


def canonical_batches(lengths: Sequence[int], budget: int, longest: int | None = None) -> list[Batch]:
    """Split rows of these token counts into batches of at most `budget` tokens, the longest first.

    A row longer than the budget gets its own batch; a row without tokens gets none. `longest` is the length of the
    longest input that the model accepts.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, tokens in enumerate(lengths):
        if tokens:
            by_length[min(canonical_length(tokens), longest or sys.maxsize)].append(row)
    return list(batches_by_length(by_length, budget))


def batches_by_length(by_length: dict[int, list[int]], budget: int) -> Iterator[Batch]:
    for length in sorted(by_length, reverse=True):
        rows, height = by_length[length], canonical_height(length, budget)
        for start in range(0, len(rows), height):
            yield Batch(rows[start : start + height], height, length)


def pad(batch: Batch, sequences: Sequence[Tokens], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask [height, length].

    Dummy rows consist of `filler` and are not masked, because a row that is masked everywhere gives NaN.
    """
    ids = np.full((batch.height, batch.length), filler, dtype=np.int64)
    mask = np.zeros((batch.height, batch.length), dtype=np.int64)
    for position, row in enumerate(batch.rows):
        tokens = len(sequences[row])
        ids[position, :tokens] = sequences[row]
        mask[position, :tokens] = 1
    mask[len(batch.rows) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device, without making the host wait for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def run_batches(
    batches: Iterable[Batch], step: Callable[[Batch], torch.Tensor]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the rows of every batch and what `step` returns for them.

    Raises UserError if a batch does not fit into memory; its message names a budget that does.
    """
    for batch in batches:
        try:
            result = step(batch)
        except torch.OutOfMemoryError:
            result = None  # the failed step's tensors are freed only outside of this handler
        if result is None:
            shape = f"{batch.height} x {batch.length}"
            raise UserError(f"out of memory in a batch of {shape} tokens; {suggest_budget(batch, step)}")
        yield batch.rows, result


def suggest_budget(batch: Batch, step: Callable[[Batch], torch.Tensor]) -> str:
    """Halve the rows of the batch until it fits; return advice for the error message."""
    height = batch.height
    while height > 1:
        height //= 2
        torch.cuda.empty_cache()
        try:
            step(Batch(batch.rows[:height], height, batch.length))
        except torch.OutOfMemoryError:
            continue
        return f"a budget of {height * batch.length} tokens fits: lower the batch tokens in params.yaml"
    return "not even one row fits: lower max_tokens in params.yaml, or use a device with more memory"
