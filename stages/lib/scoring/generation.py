"""Greedy answers of a causal LM, each a function of its prompt only.

Only prompts of the same number of tokens share a batch, so nothing is padded, and dummy rows fill the last batch of
each length. So a text never depends on the other prompts, as it can in padded batches in bf16.
"""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from stages.lib.core.errors import UserError
from stages.lib.core.progress import progress
from stages.lib.models.loading import max_positions
from stages.lib.scoring.batching import Batch, Tokens, batches_by_length, pad, run_batches, to_device


def greedy(
    model: PreTrainedModel, prompts: Sequence[Tokens], max_new_tokens: int, budget: int, what: str
) -> list[list[int]]:
    """Return the tokens that greedy decoding writes after every prompt [N], without the end token that stops it.

    An answer stops at an end token of the model's generation config or after `max_new_tokens`. A batch has at most
    `budget` tokens of prompts. `what` names the work in the progress bar. Raises UserError if a prompt has no token, or
    leaves no room for the answer.
    """
    check_prompts(prompts, max_new_tokens, max_positions(model))
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(row)
    batches = list(batches_by_length(by_length, budget))
    ends = model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(stops) or None, pad_token_id=0
    )
    answers: list[list[int]] = [[]] * len(prompts)

    def step(batch: Batch) -> torch.Tensor:
        ids, mask = (to_device(tensor, model.device) for tensor in pad(batch, prompts, filler=0))
        written: torch.Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return written[: len(batch.rows), batch.length :]

    with torch.inference_mode():
        for rows, written in run_batches(progress(batches, len(batches), what), step):
            for row, tokens in zip(rows, written.tolist(), strict=True):
                answers[row] = until(tokens, stops)
    return answers


def check_prompts(prompts: Sequence[Tokens], max_new_tokens: int, positions: int | None) -> None:
    for row, ids in enumerate(prompts):
        if not len(ids):
            raise UserError(f"prompt {row + 1} has no token, so no model can answer it; drop it")
        if positions is not None and len(ids) + max_new_tokens > positions:
            raise UserError(
                f"prompt {row + 1} has {len(ids)} tokens, which with {max_new_tokens} of the answer is more than the "
                f"{positions} that the model takes; shorten one of them"
            )


def until(tokens: list[int], stops: set[int]) -> list[int]:
    """Return the tokens before the first end token."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]
