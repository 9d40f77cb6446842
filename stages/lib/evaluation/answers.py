"""What generated answers are worth: constraints that they satisfy, right final numbers, and the floors of both.

A floor is the score of an answer without any thought. Constraints such as `no comma` are often met by accident, so a
score means little without its floors.
"""

import json
import math
import re
import unicodedata
from decimal import Decimal
from math import prod
from typing import Any

import pandas as pd

from stages.lib.evaluation.constraints import follows
from stages.lib.evaluation.marks import shares_of
from stages.lib.text.overlap import normalise

HEADER = re.compile(r"정답[*_\s]*[:：]")
SENTENCE_END = re.compile(r"(?<=[.?!])\s")
MARKUP = re.compile(r"[*_`]+(?!\s*\d)|(?<!\d)(?<!\d\s)[*_`]+")
"""Asterisks and the like, but not between two numbers: 3*4 is not 34."""
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
EQUALS = re.compile(r"(?<![<>!])=")
EDGES = " \t.*_`$\"'“”‘’"
"""What may surround an answer."""
SCALES = {"십": 10, "백": 100, "천": 1000, "만": 10**4, "억": 10**8, "조": 10**12}
NUMBER = re.compile(
    r"(?:약|총)?\s*[₩$]?\s*([-+]?(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.\d{1,30})?)"
    r"\s*((?:[십백천만억]|조(?!각)){0,4})\s*(?:m[23]|[가-힣A-Za-z%°])*"
)
"""One number, perhaps with `SCALES` and a unit: 12개, 1,234, 3.5km, 12만 원, 4조각 (a unit, four pieces)."""
POLITE = "요청하신 내용을 정성껏 알려 드리겠습니다."
"""No comma, one sentence in 합쇼체, Hangul only: it may satisfy many prompts without answering one."""


def mark_answers(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the marks of each prompt's answer, a row each.

    - `id`; `constraints`: how many the prompt has; `followed`: how many of them the answer satisfies
    - `final`: 1 if the final number is right, 0 if it is wrong, NaN if the prompt has none

    `answers` has the columns id, prompt, constraints (JSON), final and answer, as `generate` writes them.
    """
    rows = [mark(row) for row in answers.to_dict("records")]
    found = pd.DataFrame(rows, columns=["id", "constraints", "followed", "final"])
    return found.astype({"constraints": "int64", "followed": "int64", "final": "float64"})


def mark(row: dict[Any, Any]) -> dict[str, Any]:
    constraints = json.loads(row["constraints"])
    right = row["final"]
    return {
        "id": row["id"],
        "constraints": len(constraints),
        "followed": sum(follows(one["id"], one["kwargs"], row["prompt"], row["answer"]) for one in constraints),
        "final": float(reaches(row["answer"], right)) if isinstance(right, str) else math.nan,
    }


def answer_scores(marks: pd.DataFrame) -> dict[str, float]:
    """Return the scores of all prompts; one that no prompt counts for is missing.

    - `prompt_level`: share of the prompts with constraints whose constraints are all satisfied
    - `instruction_level`: share of all constraints that are satisfied
    - `final`: share of right final numbers
    - `prompts`: number of prompts
    """
    shares = {name: float(right.sum() / counts.sum()) for name, (right, counts) in shares_of(marks).items()}
    return {"prompts": len(marks), **shares}


def floors(answers: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the scores of an empty answer, of the prompt as its own answer, and of one polite sentence."""
    thoughtless = {"empty": "", "echo": answers["prompt"], "polite": POLITE}
    return {name: answer_scores(mark_answers(answers.assign(answer=answer))) for name, answer in thoughtless.items()}


def final_answer(text: str) -> str | None:
    """Return the number after `정답:`, or the text if it is none; None if there is no `정답:`.

    The first `정답:` with a digit counts, or else the first: a model may restate a question that asks for `정답: 숫자`.
    A text without `정답:` has no final answer, even if it has numbers: the last is often from a step or the question.
    """
    found = after_headers(text)
    if not found:
        return None
    written = next((one for one in found if re.search(r"\d", first_sentence(one))), found[0])
    return plain_number(written) or plain_text(written)


def after_headers(text: str) -> list[str]:
    """Return the line after each `정답:`."""
    parts = HEADER.split(unicodedata.normalize("NFKC", text))[1:]
    return [part.strip().partition("\n")[0] for part in parts]


def first_sentence(text: str) -> str:
    return SENTENCE_END.split(text, maxsplit=1)[0]


def plain_number(written: str) -> str | None:
    """Return the number that the first sentence is, or that follows its last `=`, in plain form: 1200.5 for 1,200.50.

    None if that is no number, or more than one.
    """
    plain = BOXED.sub(r"\1", MARKUP.sub("", first_sentence(written))).replace("−", "-")
    found = NUMBER.fullmatch(EQUALS.split(plain)[-1].strip(EDGES))
    if not found:
        return None
    value = Decimal(found[1].replace(",", "")) * prod(SCALES[one] for one in found[2])
    return f"{value.normalize():f}"


def plain_text(written: str) -> str:
    written = written.strip(EDGES)
    text = normalise(written)
    return written if text.isdigit() else text  # so that `3, 4` is not 34


def reaches(answer: str, right: str) -> bool:
    """Return whether the final answer is the right one: equal numbers (1,234, 1234.0, 1234개), or equal texts.

    A text must be after the first `정답:`.
    """
    number = plain_number(right)
    if number:
        return final_answer(answer) == number
    return [plain_text(written) for written in after_headers(answer)[:1]] == [plain_text(right)]
