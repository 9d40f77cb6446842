"""The model that lm-evaluation-harness queries, in one process or several, and how it is asked about one task."""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import env

from stages.lib.core.errors import UserError
from stages.lib.core.processes import rank, world
from stages.lib.core.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Request = tuple[tuple[str, str], list[int], list[int]]
"""The texts of context and continuation, the context's tokens, the continuation's tokens."""
Answer = tuple[float, bool]
"""Log-likelihood of the continuation in nats, and whether greedy decoding would give it."""


class SharedLM(HFLM):  # type: ignore[misc]
    """HFLM that shares its batches among all processes, and records the requests that it truncates.

    The batches are those that the harness builds in one process, so neither a bit nor a few-shot example depends on the
    number of processes. (The harness itself shares out items, and each process then draws other examples.)

    The softmax is computed in fp32, because bf16 gives different choices equal likelihoods.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch: int,
        bos: list[int],
        template: str | None = None,
    ) -> None:
        """`bos`: what the tokenizer begins every text with; `template`: the chat template for the questions, if any."""
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype="float32")
        self.truncated: set[tuple[str, str]] = set()
        self.bos = bos
        self.chat_template_args = {"chat_template": template} if template else {}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens, with one BOS if the tokenizer adds it, but never with the end that some add too.

        The harness would take that end of the context for a part of the answer.
        """
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        return ids if add_special_tokens is False or ids[: len(self.bos)] == self.bos else self.bos + ids

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: list[Request], *_: Any, **__: Any) -> list[Answer]:
        self.record_truncated(requests)
        batches = harness_batches(requests, self.batch_size)[rank() :: world()]
        mine: dict[int, Answer] = {}
        for numbers in progress(batches, len(batches), "log-likelihoods, batches"):
            answers = super()._loglikelihood_tokens([requests[number] for number in numbers], disable_tqdm=True)
            mine |= zip(numbers, answers, strict=True)
        found = gather_answers(mine)
        return [found[number] for number in range(len(requests))]

    def record_truncated(self, requests: list[Request]) -> None:
        """Record the requests that the harness cuts on the left. Raises UserError if it would cut a continuation."""
        for texts, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"the model takes {self.max_length} tokens, but an answer has {len(continuation)}: {texts[1]}"
                )
            if len(context) + len(continuation) > self.max_length + 1:  # the last token is only predicted
                self.truncated.add(texts)


def ask(model: SharedLM, definitions: Any, task: str, shots: int) -> list[dict[str, Any]]:
    """Return the harness's record of every item of a task, as `lm_eval.simple_evaluate` makes it.

    That function also calls pip and other programs to describe the machine, which takes seconds each time.
    """
    random.seed(DEFAULT_RANDOM_SEED)  # some tasks shuffle choices when they are loaded
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    chat = bool(model.chat_template_args)
    loaded = definitions.load([task])
    loaded["tasks"][task].set_config(key="num_fewshot", value=shots)
    loaded["tasks"][task].set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    records: list[dict[str, Any]] = evaluate(
        model, loaded, bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=chat
    )["samples"][task]
    return records


@contextmanager
def cached_templates() -> Iterator[None]:
    """Cache compiled prompt templates. The harness compiles them again for every item and every example.

    Compiling takes 96 % of the time that it needs to write 10-shot prompts.
    """
    env.from_string = cache(env.from_string)
    try:
        yield
    finally:
        del env.from_string


def harness_batches(requests: list[Request], size: int) -> list[list[int]]:
    """Return each batch as indices of requests, longest first, like the Collator of lm_eval/models/utils.py.

    Requests that differ only in the last token share a row of a batch.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (_, context, continuation) in enumerate(requests):
        groups[*context, *continuation[:-1]].append(number)

    def order(numbers: list[int]) -> tuple[int, list[int]]:
        _, context, continuation = max((requests[number] for number in numbers), key=lambda request: len(request[2]))
        return -len(context) - len(continuation), context + continuation

    rows = sorted(groups.values(), key=order)
    return [list(chain(*rows[start : start + size])) for start in range(0, len(rows), size)]


def gather_answers(mine: dict[int, Answer]) -> dict[int, Answer]:
    """Return the answers of all processes, in every process."""
    if world() == 1:
        return mine
    import torch.distributed as dist

    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, mine)
    return {number: answer for part in parts for number, answer in part.items()}
