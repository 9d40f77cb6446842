"""The model that lm-evaluation-harness queries, in one process or several."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

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
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch: int) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch, add_bos_token=False)
        self.truncated: set[tuple[str, str]] = set()

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
