"""Conversations as a model reads them: the same text and tokens in training, in the held-out loss and in use.

A format is a chat template in Jinja, which the tokenizer of the trained model keeps: a file formats/<name>.jinja or,
under the name `tokenizer`, the base's own template. transformers renders all of them. Only the answers are learned,
each with the token that ends it.

Our formats are the originals with two changes. Every answer ends with the tokenizer's own end of text: KoQuality
writes no end, so its answers never stop; KoRAE writes `</s>`, which only Llama's tokenizers read as an end. And no
prompt ends in a space, because the space would be a token of its own (' ', '감', '자는'), but in running text it
belongs to the next word (' 감', '자는'). So the space begins the answer.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator

from stages.lib.core.errors import UserError
from stages.lib.text.bos import added_bos
from stages.lib.text.conversations import Turn
from stages.lib.text.dates import dated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMATS = Path(__file__).parent / "formats"
OF_THE_BASE = "tokenizer"
"""The name of the base's own chat template."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The tag with which a template begins to mark an answer."""
Span = tuple[int, int]


def format_file(name: str) -> Path:
    return FORMATS / f"{name}.jinja"


def known_format(name: str) -> str:
    names = sorted(path.stem for path in FORMATS.glob("*.jinja"))
    if name not in names:
        raise ValueError(f"unknown format; known formats: {', '.join(names)}")
    return name


FormatName = Annotated[str, AfterValidator(known_format)]


def chat_template(name: FormatName, begins_with_bos: bool) -> str:
    """Return the template of one of our formats; it is part of every model that is trained with it."""
    bos = "{{- bos_token }}" if begins_with_bos else ""
    return bos + format_file(name).read_text(encoding="utf-8")


def set_format(tokenizer: "PreTrainedTokenizerBase", name: FormatName, end: str | None, folder: Path) -> None:
    """Give a tokenizer the chat template and the eos token of `train.format` and `train.end`.

    `folder` is where it was loaded from. Raises UserError if it lacks the end, any end, or a template of its own that
    `train.format: tokenizer` needs.
    """
    if end:
        if end not in tokenizer.get_vocab():
            known = ", ".join(sorted(token.content for token in tokenizer.added_tokens_decoder.values()))
            raise UserError(f"params.yaml: train.end: {end} is no token of {folder}; it has {known}")
        tokenizer.add_special_tokens({"eos_token": end})
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no eos token, so an answer could not end; set train.end")
    if name != OF_THE_BASE:
        tokenizer.chat_template = chat_template(name, begins_with_bos=bool(added_bos(tokenizer)))
    elif tokenizer.chat_template is None:
        raise UserError(
            f"{folder}: the base has no chat template for train.format: {OF_THE_BASE}; use another format, such as "
            "chatml"
        )


class Example(NamedTuple):
    ids: list[int]
    """The whole conversation, cut at `max_tokens`."""
    answers: list[Span]
    """Where labels start and stop: every answer with its end, or everything if prompts are learned too."""
    cut: bool = False
    """Whether the last answer lost its end."""
    rewritten: bool = False
    """Whether the template changes an answer as soon as other turns follow; then only the last answer is learned."""
    refused: str = ""
    """Why the template refuses the conversation, which then has no ids."""

    def learned(self) -> list[Span]:
        """Return the spans of the labels; the first token is none, because nothing predicts it."""
        return [(max(start, 1), stop) for start, stop in self.answers if stop > max(start, 1)]


def encode(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Sequence[Turn]], max_tokens: int
) -> list[Example]:
    """Return every conversation as the tokenizer's chat template writes it.

    If the template refuses a conversation with a system text, the system text is put before the first question. If it
    refuses that too, the example has no ids. Raises UserError if the text begins with two BOS, or if an answer is not
    marked or has no end.
    """
    ends = end_tokens(tokenizer)
    return [encode_or_refuse(tokenizer, turns, ends, max_tokens) for turns in conversations]


def encode_or_refuse(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], ends: tuple[str, ...], max_tokens: int
) -> Example:
    from jinja2 import TemplateError

    refusal = ""
    for way in [turns, with_system_in_question(turns)] if turns[0].role == "system" else [turns]:
        try:
            return encode_turns(tokenizer, way, ends, max_tokens)
        except TemplateError as error:
            refusal = str(error)
    return Example([], [], refused=refusal)


def with_system_in_question(turns: Sequence[Turn]) -> list[Turn]:
    system, question, *others = turns
    return [Turn(question.role, f"{system.text}\n\n{question.text}"), *others]


def encode_turns(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], ends: tuple[str, ...], max_tokens: int
) -> Example:
    text, spans, rewritten = find_answers(tokenizer, turns)
    places = [place for start, stop in spans for place in (start, place_after_end(text, start, stop, ends))]
    ids, counts = tokens_before(tokenizer, text, [*places, len(text)])
    if ids[:2] == [tokenizer.bos_token_id] * 2:
        raise UserError(
            f"params.yaml: train.format: its text begins with {tokenizer.bos_token} twice; the tokenizer adds one by "
            "itself, so take it out of the format"
        )
    found = list(zip(counts[:-1:2], counts[1:-1:2], strict=True))
    answers = [(start, min(stop, max_tokens)) for start, stop in found if start < max_tokens]
    return Example(ids[:max_tokens], answers, found[-1][1] > max_tokens, rewritten)


def find_answers(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn]) -> tuple[str, list[Span], bool]:
    """Return the text, where in it answers start and stop, and whether only the last answer could be found.

    Answers are what the template marks with `{% generation %}`; without it, what the template adds to its prompt
    (`add_generation_prompt`). Raises jinja2's TemplateError if the template refuses the turns, or if the text does not
    begin with the prompt: EXAONE 4's prompt ends with an empty thought even if the answer has a thought of its own.
    """
    from jinja2 import TemplateRuntimeError

    text, marked = render(tokenizer, turns)
    if GENERATION.search(tokenizer.get_chat_template()):
        if not marked:
            raise UserError(
                "params.yaml: train.format: the chat template has {% generation %}, but marks no answer with it in: "
                f"{text[:200]!r}; correct the template, or take {{% generation %}} out of it"
            )
        return text, marked, False
    found = [added_by_answer(tokenizer, turns, n, text) for n, turn in enumerate(turns) if turn.role == "assistant"]
    *earlier, last = found
    if last is None:
        raise TemplateRuntimeError("the text with its answer does not begin with the prompt (add_generation_prompt)")
    if None in earlier:
        return text, [last], True
    return text, [span for span in found if span], False


def added_by_answer(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], number: int, text: str) -> Span | None:
    """Return where in `text` turn `number`, an answer, starts and stops, or None if `text` has it in another form.

    Some templates (Qwen 3's) change an answer as soon as other turns follow.
    """
    prompt, _ = render(tokenizer, turns[:number], as_prompt=True)
    answered, _ = render(tokenizer, turns[: number + 1])
    return (len(prompt), len(answered)) if answered.startswith(prompt) and text.startswith(answered) else None


def render(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], as_prompt: bool = False
) -> tuple[str, list[Span]]:
    """Return the text that `apply_chat_template` writes, and the spans inside `{% generation %}`.

    This calls the same function as `apply_chat_template`, but does not use its mask of tokens: that is all zero if
    answers begin with a space and the tokenizer's offsets leave spaces out, as GPT-NeoX's do.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    template = dated(tokenizer.get_chat_template())
    marks = GENERATION.search(template) is not None
    texts, spans = render_jinja_template(
        conversations=[[{"role": turn.role, "content": turn.text} for turn in turns]],
        chat_template=template,
        return_assistant_tokens_mask=marks,
        add_generation_prompt=as_prompt,
        **tokenizer.special_tokens_map,
    )
    return texts[0], [tuple(span) for span in spans[0]] if marks else []


def end_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return the tokens that may end an answer: the eos token and all added tokens, such as `<|im_end|>`."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return tuple(sorted(text for text in added | {tokenizer.eos_token} if text.strip()))


def place_after_end(text: str, start: int, stop: int, ends: tuple[str, ...]) -> int:
    """Return where the answer's end token stops. What follows it, usually a newline, is not learned."""
    answer = text[start:stop].rstrip()
    if answer.endswith(ends):
        return start + len(answer)
    for end in ends:
        if text.startswith(end, stop):
            return stop + len(end)
    raise UserError(
        f"params.yaml: train.format: no token ends the answer {text[start:stop][-100:]!r}, so the model could not "
        f"learn to stop; use a format that writes one of {', '.join(ends)} after it"
    )


def tokens_before(
    tokenizer: "PreTrainedTokenizerBase", text: str, places: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the tokens of the text, and how many of them are before each of its places; the last place is its end.

    The text before a place gets the tokens that it has by itself, as a prompt in use does.
    """
    ids: list[int] = []
    counts, done = [], 0
    for place in places:
        if place > done:
            more = tokenizer(text[:place], add_special_tokens=False)["input_ids"]
            if more[: len(ids)] != ids:  # a token would cross the last place
                more = ids + tokenizer(text[done:place], add_special_tokens=False)["input_ids"]
            ids, done = more, place
        counts.append(len(ids))
    return ids, counts
