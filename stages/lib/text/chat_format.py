"""The text around instructions and answers: the same in training, held-out loss and use.

The benchmark has its own prompts. A format is one file, formats/<name>.json: the text that begins a conversation
(`system`), the text `before` and `after` every instruction, and its `origin`. The formats are the originals' with one
change: every answer ends with the tokenizer's own end of text. KoQuality writes no end, so its answers never stop;
KoRAE writes `</s>`, which only Llama's tokenizers read as an end. A prompt begins with BOS if the tokenizer adds it to
every text.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator

from stages.lib.core.errors import UserError
from stages.lib.text.bos import added_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMATS = Path(__file__).parent / "formats"
END = "{end}"
"""Stands for the end of text in a format's file."""


class Format(NamedTuple):
    system: str
    before: str
    after: str


def format_file(name: str) -> Path:
    return FORMATS / f"{name}.json"


def known_format(name: str) -> str:
    names = sorted(path.stem for path in FORMATS.glob("*.json"))
    if name not in names:
        raise ValueError(f"unknown format; known formats: {', '.join(names)}")
    return name


FormatName = Annotated[str, AfterValidator(known_format)]


@cache
def read_format(name: FormatName) -> Format:
    content = json.loads(format_file(name).read_text(encoding="utf-8"))
    return Format(*(content[part] for part in Format._fields))


class Example(NamedTuple):
    ids: list[int]
    """BOS if there is one, prompt, answer, end of text; cut at `max_tokens`."""
    start: int
    """Where the labels begin: at the answer, or at 0 if the prompt is learned too."""

    def learns(self) -> bool:
        """Whether a label is left; the first token is never predicted."""
        return len(self.ids) > max(self.start, 1)


def render(name: FormatName, instruction: str, end: str) -> str:
    """Return the prompt without BOS; `end` is the tokenizer's end of text."""
    system, before, after = (part.replace(END, end) for part in read_format(name))
    return system + before + instruction + after


def chat_template(name: FormatName, begins_with_bos: bool) -> str:
    """Return the format as a Jinja template, which tokenizers carry; it renders the same bytes as `render`, after BOS.

    Its text, the message in it too, is part of every trained model: a changed word changes the models' hashes.
    """
    system, before, after = (
        " + eos_token + ".join(json.dumps(text, ensure_ascii=False) for text in part.split(END))
        for part in read_format(name)
    )
    bos = "{{- bos_token }}" if begins_with_bos else ""
    return (
        f"{bos}{{{{- {system} }}}}{{%- for message in messages %}}{{%- if message['role'] == 'user' %}}"
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
    """Tokenize prompt and answer separately, so that the prompt's tokens are those of inference.

    A row whose prompt fills `max_tokens` has no answer token: its start equals its length. Raises UserError if the
    format begins with the BOS that the tokenizer adds too.
    """
    if not instructions:
        return []
    bos = added_bos(tokenizer)
    rendered = [render(name, text, tokenizer.eos_token) for text in instructions]
    prompts = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    if bos and prompts[0][:1] == bos:
        raise UserError(
            f"{format_file(name)}: it begins with {tokenizer.bos_token}, which the tokenizer adds by itself, so there "
            "would be two; take it out of the format"
        )
    answers = tokenizer(list(outputs), add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        Example((bos + prompt + answer + end)[:max_tokens], min(len(bos + prompt), max_tokens))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
