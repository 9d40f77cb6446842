"""The mark from 0 to 10 that a causal LM expects after a prompt, from the probabilities of the marks themselves.

    B rows of a batch, T tokens, D width, V vocabulary

The mean takes more values than the mark that the model would write (Liu et al. 2023, arXiv 2312.15685, score this way,
with the marks 1 to 6). A mark's probability is that of all its tokens; if the tokens of `10` begin with those of `1`,
the probability of `10` is subtracted from that of `1`.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.lib.core.processes import rank, world
from stages.lib.core.progress import progress
from stages.lib.models.loading import max_positions, tokenize
from stages.lib.scoring.attention import one_kernel
from stages.lib.scoring.batching import TILE, Batch, Tokens, canonical_batches, pad, run_batches, to_device
from stages.lib.scoring.log_likelihood import score_batches, split_model
from stages.lib.text.bos import added_bos
from stages.lib.text.chat_format import render, tokens_before, with_system_in_question
from stages.lib.text.conversations import Turn

MARKS = range(11)
Messages = Sequence[dict[str, str]]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], limit: int) -> list[Tokens]:
    """Return the tokens of every prompt; of one that has more than `limit`, at least one token more."""
    begin = [] if tokenizer.chat_template else added_bos(tokenizer)
    texts = [prompt_text(tokenizer, messages) for messages in prompts]
    ids = tokenize(tokenizer, texts, add_special_tokens=False, max_length=limit + 1)
    return [np.concatenate([np.array(begin, dtype=np.int32), row]) for row in ids]


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """Return the text after which the model replies; without a chat template, each message with a blank line.

    If a template refuses a system message, its text goes before the question.
    """
    from jinja2 import TemplateError

    turns = [Turn(message["role"], message["content"]) for message in messages]
    if not tokenizer.chat_template:
        return "".join(f"{turn.text}\n\n" for turn in turns)
    try:
        return render(tokenizer, turns, as_prompt=True)[0]
    except TemplateError:
        return render(tokenizer, with_system_in_question(turns), as_prompt=True)[0]


def label_tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of every mark [11] at the beginning of a reply."""
    prompt = prompt_text(tokenizer, [{"role": "system", "content": "?"}, {"role": "user", "content": "?"}])
    found = (tokens_before(tokenizer, text := f"{prompt}{mark}", [len(prompt), len(text)]) for mark in MARKS)
    return [ids[start:] for ids, (start, _) in found]


def expected_marks(
    model: PreTrainedModel, prompts: Sequence[Tokens], labels: Sequence[list[int]], budget: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield for every batch of this process its rows and the mark that the model expects [n], without empty prompts.

    All marks of one token share one pass over the prompts; each mark of several tokens has its own.
    """
    spare = max(len(label) for label in labels)
    lengths = [len(prompt) + spare if len(prompt) else 0 for prompt in prompts]
    batches = canonical_batches(lengths, budget, max_positions(model))[rank() :: world()]
    single = [mark for mark in MARKS if len(labels[mark]) == 1]
    order = [*single, *(mark for mark in MARKS if mark not in single)]
    shown = progress(batches, len(batches), "marks, batches")
    passes = [next_token_logs(model, prompts, [labels[mark][0] for mark in single], shown)]
    passes += [label_logs(model, prompts, labels[mark], batches) for mark in order[len(single) :]]
    for parts in zip(*passes, strict=True):
        logs = torch.cat([part for _, part in parts], dim=1)
        yield parts[0][0], mean_mark(logs[:, np.argsort(order)], labels)


@torch.inference_mode()
def next_token_logs(
    model: PreTrainedModel, prompts: Sequence[Tokens], tokens: Sequence[int], batches: Iterable[Batch]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the rows of every batch and the log-probabilities of these tokens after the prompt [n, len(tokens)]."""
    forward, head = split_model(model, prompts)

    def logs_of(batch: Batch) -> torch.Tensor:
        ids_BT, mask_BT = pad(batch, prompts, filler=0)
        last = torch.arange(batch.height) * batch.length + mask_BT.sum(1) - 1
        last = to_device(F.pad(last, (0, -batch.height % TILE)), model.device)
        hidden_BTD = forward(to_device(ids_BT, model.device), to_device(mask_BT, model.device))
        logs_BV = head(hidden_BTD.flatten(0, 1)[last]).float().log_softmax(1)
        return logs_BV[: len(batch.rows), list(tokens)].double()

    with one_kernel(model, "causal"):
        yield from run_batches(batches, logs_of)


def label_logs(
    model: PreTrainedModel, prompts: Sequence[Tokens], label: list[int], batches: Iterable[Batch]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the rows of every batch and the log-probability of the whole label after the prompt [n, 1]."""
    sequences = [np.concatenate([prompt, label]) for prompt in prompts]
    for rows, nll in score_batches(model, sequences, [len(prompt) for prompt in prompts], batches):
        yield rows, -nll.unsqueeze(1)


def mean_mark(logs: torch.Tensor, labels: Sequence[list[int]]) -> torch.Tensor:
    """Return the mean of the marks [n], weighted by their probabilities, from their logarithms [n, 11]."""
    whole = (logs - logs.amax(1, keepdim=True)).exp()
    weights = whole.clone()
    for short in MARKS:
        for long in MARKS:
            if len(labels[short]) < len(labels[long]) and labels[long][: len(labels[short])] == labels[short]:
                weights[:, short] -= whole[:, long]
    total, marked = torch.zeros_like(logs[:, 0]), torch.zeros_like(logs[:, 0])
    for mark, weight in zip(MARKS, weights.clamp_min(0).unbind(1), strict=True):
        total, marked = total + weight, marked + mark * weight  # a matrix product's bits would depend on its other rows
    return marked / total
