"""How likely a causal LM finds an answer: after its instruction, and alone.

Both texts begin with the token that begins the model's texts, so both means are over exactly the same tokens of the
answer, the first included. This is so in Li et al. 2023 (arXiv 2308.12032), because Llama's tokenizer adds that token.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.lib.core.errors import UserError
from stages.lib.core.processes import rank, world
from stages.lib.core.progress import progress
from stages.lib.models.loading import tokenize
from stages.lib.scoring.batching import Tokens, to_device
from stages.lib.scoring.log_likelihood import predicting_batches, score_batches
from stages.lib.text.bos import added_bos


class Answers(NamedTuple):
    given: list[Tokens]
    """Beginning, instruction and answer, cut at `max_tokens`."""
    alone: list[Tokens]
    """Beginning and the tokens of the answer that `given` has."""
    starts: list[int]
    """Where the answer starts in `given`; a row without room for its answer ends there, or before."""


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], answered: Sequence[str], max_tokens: int
) -> Answers:
    """Return the tokens of what was asked, with a newline, and of what was answered, each text by itself.

    So the answer's tokens are the same after the instruction and alone. Raises UserError if the tokenizer has no token
    to begin a text with.
    """
    options = {"add_special_tokens": False, "max_length": max_tokens}
    begin = [beginning(tokenizer)]
    answers = Answers([], [], [])
    questions = tokenize(tokenizer, [f"{text}\n" for text in asked], **options)
    for question, answer in zip(questions, tokenize(tokenizer, answered, **options), strict=True):
        start = 1 + len(question)
        answers.given.append(np.concatenate([begin, question, answer])[:max_tokens])
        answers.alone.append(np.concatenate([begin, answer[: max(0, max_tokens - start)]]))
        answers.starts.append(start)
    return answers


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that came before the model's texts in training.

    That is the beginning-of-text token if the tokenizer adds it by itself, otherwise the end token of the text before;
    a beginning-of-text token that is never added is the last resort, because the model may never have seen it.
    """
    for token in (*added_bos(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        f"{tokenizer.name_or_path}: the tokenizer has neither an eos nor a bos token to begin a text with; name one in "
        "its tokenizer_config.json, or choose another rate.model"
    )


def score_answers(model: PreTrainedModel, answers: Answers, budget: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield for every batch of this process its rows and [n, 3]: the answer's tokens, and their mean negative
    log-likelihoods in nats, after the instruction and alone. Zeros for a row that has no token of its answer.

    Alone, an answer runs in a batch of the same shape as after its instruction, so both are done at the same time.
    """
    given, alone, starts = answers
    unanswered = [row for row, tokens in enumerate(alone) if len(tokens) < 2]
    if unanswered and rank() == 0:
        yield unanswered, torch.zeros((len(unanswered), 3), dtype=torch.float64, device=model.device)
    batches = predicting_batches(model, given, starts, budget)[rank() :: world()]
    after = score_batches(model, given, starts, progress(batches, len(batches), "answers, batches"))
    for (rows, nll), (_, nll_alone) in zip(after, score_batches(model, alone, [1] * len(alone), batches), strict=True):
        tokens = to_device(torch.tensor([len(alone[row]) - 1 for row in rows], dtype=torch.float64), model.device)
        yield rows, torch.stack([tokens, nll / tokens, nll_alone / tokens], dim=1)
