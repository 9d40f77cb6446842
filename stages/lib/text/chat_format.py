"""The text of instruction tuning, the same in training, held-out loss and use; the benchmark has its own.

The formats are those of the originals, but that every answer ends with the tokenizer's own end of text: KoQuality
writes none, so its answers never end, and KoRAE writes `</s>`, which is one for Llama's tokenizers alone.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "{end}"
"""Stands for the end of text."""
FormatName = Literal["koalpaca", "koquality", "korae"]


class Format(NamedTuple):
    system: str
    """What a conversation begins with."""
    before: str
    """What stands before an instruction."""
    after: str
    """What stands between an instruction and its answer."""


FORMATS: dict[FormatName, Format] = {
    # Beomi/KoAlpaca, train_v1.1b/README.md
    "koalpaca": Format("", "### 질문: ", "\n\n### 답변: "),
    # nayohan/KoQuality, train_llm/convert_json.ipynb
    "koquality": Format("", "### 질문: ", "### 답변: "),
    # gauss5930/KoRAE, templates/KoRAE_template.json and finetuning/utils/prompter.py
    "korae": Format(
        "### System:\n당신은 유용한 인공지능 비서입니다. 사용자가 몇 가지 지시가 포함된 작업을 제공합니다. "
        f"요청을 적절히 완료하는 응답을 작성하세요.{END}\n\n",
        "### User:\n",
        f"{END}\n\n### Assistant:\n",
    ),
}


class Example(NamedTuple):
    ids: list[int]
    """Prompt, answer, end of text; cut at the most tokens allowed."""
    start: int
    """Where the labels begin: with the answer, or at 0 where everything is learned."""

    def learns(self) -> bool:
        """Whether a label is left; the first token is never predicted."""
        return len(self.ids) > max(self.start, 1)


def render(name: FormatName, instruction: str, end: str) -> str:
    """Return the prompt; `end` is the tokenizer's end of text."""
    system, before, after = (part.replace(END, end) for part in FORMATS[name])
    return system + before + instruction + after


def chat_template(name: FormatName) -> str:
    """Return the format as the Jinja template that a tokenizer carries; it renders the same bytes."""
    system, before, after = (
        " + eos_token + ".join(json.dumps(text, ensure_ascii=False) for text in part.split(END))
        for part in FORMATS[name]
    )
    return (
        f"{{{{- {system} }}}}{{%- for message in messages %}}{{%- if message['role'] == 'user' %}}"
        f"{{{{- {before} + message['content'] + {after} }}}}{{%- elif message['role'] == 'assistant' %}}"
        "{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}{%- else %}"
        "{{- raise_exception('this format has user and assistant alone') }}{%- endif %}{%- endfor %}"
    )


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    name: FormatName,
    instructions: Sequence[str],
    outputs: Sequence[str],
    max_tokens: int,
) -> list[Example]:
    """Tokenize prompt and answer apart, so that the prompt's tokens are those of inference.

    A row whose prompt fills `max_tokens` has no answer token: its start equals its length.
    """
    if not instructions:
        return []
    rendered = [render(name, text, tokenizer.eos_token) for text in instructions]
    prompts = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    answers = tokenizer(list(outputs), add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        Example((prompt + answer + end)[:max_tokens], min(len(prompt), max_tokens))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
