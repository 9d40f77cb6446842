"""The prompt of instruction tuning, the same in training, held-out loss and use; the benchmark has its own.

KoAlpaca v1.1's format (Beomi/KoAlpaca, train_v1.1b/README.md); the end-of-text token is the tokenizer's own.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Example(NamedTuple):
    ids: list[int]
    """Prompt, answer, end of text; cut at the most tokens allowed."""
    start: int
    """Where the answer begins: what is before is never a label."""


def render(instruction: str) -> str:
    return f"### 질문: {instruction}\n\n### 답변: "


def encode(
    tokenizer: "PreTrainedTokenizerBase", instructions: Sequence[str], outputs: Sequence[str], max_tokens: int
) -> list[Example]:
    """Tokenize prompt and answer apart, so that the prompt's tokens are those of inference.

    A row whose prompt fills `max_tokens` has no answer token: its start equals its length.
    """
    if not instructions:
        return []
    prompts = tokenizer([render(text) for text in instructions], add_special_tokens=False)["input_ids"]
    answers = tokenizer(list(outputs), add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        Example((prompt + answer + end)[:max_tokens], min(len(prompt), max_tokens))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
