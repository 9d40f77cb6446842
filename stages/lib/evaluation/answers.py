"""What generated answers are worth: constraints that they satisfy, right final numbers, and the floors of both.

A floor is the score of an answer without any thought. Constraints such as `no comma` are often met by accident, so a
score means little without its floors.
"""

import json
import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

import pandas as pd

from stages.lib.evaluation.constraints import follows
from stages.lib.evaluation.marks import shares_of
from stages.lib.text.overlap import normalise

HEADER = re.compile(r"정답[*_\s]*[:：]\s*([^\n]*)")
NUMBER = re.compile(
    r"(?:약|총)?\s*[₩$]?\s*([-+]?(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.\d{1,30})?)\s*[가-힣A-Za-z%℃]*"
)
"""One number, with its unit if it has one: 12개, 1,234, 3.5km."""
POLITE = "요청하신 내용을 정성껏 알려 드리겠습니다."
"""No comma, one sentence in 합쇼체, Hangul only: the answer that most prompts might accept without being answered."""


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
    """Return what follows the first `정답:`, as a plain number if it is one; None if the text has none.

    A text without `정답:` has no final answer, even if it has numbers: the last is often from a step or the question.
    """
    found = HEADER.search(text)
    if not found:
        return None
    written = unicodedata.normalize("NFKC", found[1]).strip(" \t.*_`\"'")
    number = NUMBER.fullmatch(written)
    if number:
        return plain_number(number[1])
    text = normalise(written)
    return written if text.isdigit() else text  # so that `3, 4` is not 34


def plain_number(digits: str) -> str:
    """Return a number without commas, trailing zeros and exponent: 1200.5 for 1,200.50."""
    return f"{(Decimal(digits.replace(',', '')) + 0).normalize():f}"


def reaches(answer: str, right: str) -> bool:
    """Return whether the final answer is the right one: equal numbers (1,234, 1234.0, 1234개) or equal texts."""
    return final_answer(answer) == final_answer(f"정답: {right}")
