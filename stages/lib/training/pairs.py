"""Pairs of a better and a worse answer, as tokens of the conversations that the same network was fine-tuned on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stages.lib.text.chat_format import Example, encode
from stages.lib.text.conversations import Turn
from stages.lib.text.hashing import uniform_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG, REFUSED = "too_long", "refused"


class Pair(NamedTuple):
    """The tokens of a question and of two answers to it, each with its end."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def swapped(self) -> "Pair":
        return Pair(self.prompt, self.rejected, self.chosen)

    def conversations(self) -> list[list[int]]:
        return [self.prompt + self.chosen, self.prompt + self.rejected]


def encode_pairs(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, str, str]], max_tokens: int
) -> list[Pair | str]:
    """Return every (prompt, chosen, rejected) as tokens, or why it cannot be trained on.

    TOO_LONG: a conversation has more than `max_tokens`. REFUSED: the chat template refuses one, or writes another
    prompt for each answer.
    """

    def examples(answer: int) -> list[Example]:
        turns = [[Turn("user", text[0]), Turn("assistant", text[answer])] for text in texts]
        return encode(tokenizer, turns, max_tokens)

    return [to_pair(chosen, rejected) for chosen, rejected in zip(examples(1), examples(2), strict=True)]


def to_pair(chosen: Example, rejected: Example) -> Pair | str:
    if chosen.refused or rejected.refused:
        return REFUSED
    if any(example.cut or not example.answers for example in (chosen, rejected)):
        return TOO_LONG
    (start, stop), (other, end) = chosen.answers[-1], rejected.answers[-1]
    if chosen.ids[:start] != rejected.ids[:other]:
        return REFUSED
    return Pair(chosen.ids[:start], chosen.ids[start:stop], rejected.ids[other:end])


def swap_half(pairs: Sequence[Pair], ids: Sequence[str], seed: int) -> list[Pair]:
    """Return the pairs with their answers swapped in half of them, rounded down: those whose keyed hash is lowest."""
    order = np.argsort(uniform_hash(list(ids), "labels", seed), kind="stable")
    lowest = set(order[: len(pairs) // 2].tolist())
    return [pair.swapped() if number in lowest else pair for number, pair in enumerate(pairs)]
