"""Greedy answers of a causal LM, each a function of its prompt only.

Only prompts of the same number of tokens share a batch, so nothing is padded, and dummy rows fill the last batch of
each length. So a text never depends on the other prompts, as it can in padded batches in bf16.

The loop is our own: `generate` of transformers takes whatever the caller leaves out, such as a repetition penalty, from
the model's generation_config.json, and is three times as slow for a small model.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.lib.core.errors import UserError
from stages.lib.core.progress import progress
from stages.lib.models.loading import max_positions
from stages.lib.scoring.batching import Batch, Tokens, pad, to_device
from stages.lib.text.chat_format import render
from stages.lib.text.conversations import Turn

ROWS = 8
"""A batch has a multiple of this many rows. With fewer, a CPU multiplies by other kernels, which round in another way:
logits in fp32 differ by up to 1e-5, while those of 8 to 48 rows were equal in every bit."""


class Answer(NamedTuple):
    tokens: list[int]
    """Without the end token."""
    ended: bool
    """Whether an end token stopped it, not the limit."""


def greedy(
    model: PreTrainedModel,
    prompts: Mapping[str, Tokens],
    stops: set[int],
    max_new_tokens: int,
    budget: int,
    what: str,
) -> list[Answer]:
    """Return what greedy decoding writes after every prompt [N], until one of `stops` or for `max_new_tokens`.

    A batch has at most `budget` tokens of prompts and answers if `ROWS` rows fit. `what` names the work in the progress
    bar. Raises UserError before anything is written if a prompt has no token or leaves no room for the answer, and
    names the prompt. Raises it later if a logit is not finite, or if a batch does not fit into memory.
    """
    check_prompts(prompts, max_new_tokens, max_positions(model))
    names, ids = list(prompts), list(prompts.values())
    batches = list(batches_of_equal_length(ids, max_new_tokens, budget))
    answers: dict[int, Answer] = {}
    for batch in progress(batches, len(batches), what):
        starts, _ = pad(batch, ids, filler=0)
        try:
            written = continuation(model, to_device(starts, model.device), len(batch.rows), stops, max_new_tokens)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory in a batch of {batch.height} answers to prompts of {batch.length} tokens; lower the "
                f"tokens of a batch (it has at least {ROWS} answers) or of an answer"
            ) from error
        except FloatingPointError as error:
            asked = ", ".join(names[row] for row in batch.rows)
            raise UserError(
                f"the model computes {error} after prompt {asked}; generate in fp32, or train again with a lower "
                "train.learning_rate"
            ) from error
        answers |= zip(batch.rows, (cut(tokens, stops) for tokens in written), strict=True)
    return [answers[row] for row in range(len(ids))]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[int]:
    """Return the tokens after which a model with this chat template answers."""
    text, _ = render(tokenizer, turns, as_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def end_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end an answer: those of the model's generation config, and the tokenizer's eos token."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    known = ends if isinstance(ends, list) else [ends]
    return {token for token in [*known, tokenizer.eos_token_id] if token is not None}


def check_prompts(prompts: Mapping[str, Tokens], max_new_tokens: int, positions: int | None) -> None:
    for name, ids in prompts.items():
        if not len(ids):
            raise UserError(f"prompt {name} has no token, so no model can answer it; drop it")
        if positions is not None and len(ids) + max_new_tokens > positions:
            raise UserError(
                f"prompt {name} has {len(ids)} tokens, which with {max_new_tokens} of the answer is more than the "
                f"{positions} that the model takes; shorten the prompt or the answer (max_new_tokens)"
            )


def batches_of_equal_length(prompts: Sequence[Tokens], max_new_tokens: int, budget: int) -> Iterator[Batch]:
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(row)
    for length, rows in sorted(by_length.items(), reverse=True):
        height = max(1, budget // (length + max_new_tokens) // ROWS) * ROWS
        for start in range(0, len(rows), height):
            yield Batch(rows[start : start + height], height, length)


@torch.inference_mode()
def continuation(
    model: PreTrainedModel, ids_RT: torch.Tensor, rows: int, stops: set[int], max_new_tokens: int
) -> list[list[int]]:
    """Return the tokens that follow the first `rows` rows; the rest are dummies.

    Goes on until each of these rows has one of `stops`. Raises FloatingPointError if a logit is not finite.
    """
    ends = torch.tensor(sorted(stops), dtype=torch.long, device=ids_RT.device)
    ended_R = torch.arange(len(ids_RT), device=ids_RT.device) >= rows
    cache, last_R1, written = None, ids_RT, []
    for _ in range(max_new_tokens):
        out = model(input_ids=last_R1, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, (best_R1, last_R1) = out.past_key_values, out.logits[:, -1:].max(-1)
        if not torch.isfinite(best_R1).all():
            raise FloatingPointError("a logit that is not finite")
        written.append(last_R1)
        ended_R |= torch.isin(last_R1[:, 0], ends)
        if ended_R.all():
            break
    found: list[list[int]] = torch.cat(written, 1)[:rows].tolist()
    return found


def cut(tokens: list[int], stops: set[int]) -> Answer:
    """Return the tokens before the first end token."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return Answer(tokens[:end], end < len(tokens))
