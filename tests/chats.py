"""Conversations in twelve shapes, and chat templates in the style of published models, made up for these tests.

The templates have `{% generation %}`; no published one of Llama, Qwen, Gemma or EXAONE has it, so `stock` takes it out.
"""

import copy
import re
from itertools import groupby
from pathlib import Path

from stages.lib.text.bos import added_bos
from stages.lib.text.chat_format import chat_template, encode
from stages.lib.text.conversations import Turn, turns_of
from stages.lib.training.collate import IGNORED, labels

TEMPLATES = Path(__file__).parent / "templates"
STYLES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
OURS = ["alpaca", "chatml", "koalpaca", "koquality", "korae", "kullm"]
CONTROL = (
    "<|start_header_id|> <|end_header_id|> <|eot_id|> <|im_start|> <|im_end|> <|stop|> <|endofturn|> <think> </think>"
)
CONTROL += " <start_of_turn> <end_of_turn> [|system|] [|user|] [|assistant|] [|tool|] [|endofturn|]"
ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
TEXTS = {"s": ["짧게"], "u": ["물은?", "불은?", "흙은?"], "a": ["액체", "열", "땅"], "t": ["21도"]}


def say(letters):
    texts = {letter: iter(said) for letter, said in TEXTS.items()}
    return [Turn(ROLES[letter], next(texts[letter])) for letter in letters]


THOUGHT = Turn("assistant", "<think>\n음\n</think>\n\n액체")
LETTERS = ("ua", "uaua", "uauaua", "sua", "suaua", "uata", "suata", "uataua", "uauata")
SHAPES = {letters: say(letters) for letters in LETTERS} | {
    "lines": [Turn("user", "물은?\n\n한 줄로.\n"), Turn("assistant", " 액체\n\n끝.\n")],
    "thought first": [say("u")[0], THOUGHT, *say("uaua")[2:]],
    "thought last": [say("u")[0], THOUGHT],
}


def with_control_tokens(tokenizer):
    """Return a copy of the tokenizer that has the control tokens of all the templates."""
    made = copy.deepcopy(tokenizer)
    made.add_tokens(CONTROL.split(), special_tokens=True)
    return made


def style(name):
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def stock(name):
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", style(name))


def template_of(name):
    """Return the template of one of our formats, or of a style as published."""
    return chat_template(name, begins_with_bos=False) if name in OURS else stock(name)


def prompt_of(name, question, end):
    """Return the text before the answer to one question in one of our formats, written by hand."""
    korae = "당신은 유용한 인공지능 비서입니다. 사용자가 몇 가지 지시가 포함된 작업을 제공합니다. "
    korae += "요청을 적절히 완료하는 응답을 작성하세요."
    kullm = "아래는 작업을 설명하는 명령어입니다. 요청을 적절히 완료하는 응답을 작성하세요."
    alpaca = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    return {
        "alpaca": f"{alpaca}\n\n### Instruction:\n{question}\n\n### Response:\n",
        "chatml": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "koalpaca": f"### 질문: {question}\n\n### 답변:",
        "koquality": f"### 질문: {question}### 답변:",
        "korae": f"### System:\n{korae}{end}\n\n### User:\n{question}{end}\n\n### Assistant:\n",
        "kullm": f"{kullm}\n\n### 명령어:\n{question}\n\n### 응답:\n",
    }[name]


def encode_pairs(tokenizer, name, rows, max_tokens):
    """Return the examples of plain rows in one of our formats."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = chat_template(name, begins_with_bos=bool(added_bos(tokenizer)))
    return encode(chat, [turns_of(row) for row in rows], max_tokens)


def messages(turns):
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def shown(tokenizer, example):
    """Return the text of the tokens, with brackets around those that are learned according to the labels."""
    if example.refused:
        return f"refused: {example.refused}"
    pairs = list(zip(example.ids, labels(example), strict=True))
    assert all(label in (IGNORED, token) for token, label in pairs)
    parts = [(learned, [token for token, _ in run]) for learned, run in groupby(pairs, lambda pair: pair[1] != IGNORED)]
    text = "".join(f"⟦{tokenizer.decode(ids)}⟧" if learned else tokenizer.decode(ids) for learned, ids in parts)
    return text.replace("\n", "⏎") + (" (only the last)" if example.rewritten else "")
