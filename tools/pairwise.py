"""Read what a judge says about two answers, and count it.

A judge gives two marks from 1 to 10 on the first line of its reply. Nothing is guessed: any other line gives no marks.

Every pair is judged in both orders. As in AlpaGasus (Chen et al. 2023, arXiv 2307.08701), an answer wins if both orders
say so, or if one does and the other is a tie; the winning score is (wins - losses) / n + 1, so 1 is parity.

Dimension key: A runs of one arm, B runs of the other, N prompts.
"""

import re
import unicodedata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.lib.core.errors import UserError
from stages.lib.rating.marks import (
    BULLET,
    CUT,
    ERROR,
    LABEL,
    OK,
    ONLY_LABEL,
    OUT_OF_RANGE,
    REFUSED,
    THOUGHT,
    UNPARSED,
)
from stages.lib.statistics import paired
from stages.lib.statistics.comparison import Resampling
from stages.lib.statistics.replicates import crossed

LOWEST, HIGHEST = 1.0, 10.0
"""The scale that the prompt states."""
MOST_FLIPS = 0.3
"""If the order of the answers changes the winner of more of the pairs, the judge cannot tell them apart."""
LEAST_PROMPTS = 2
"""Fewest prompts that have an interval."""
MARKDOWN = r"[*_`\"'“”‘’]+"
EMPHASIS = re.compile(rf"(?<![0-9]){MARKDOWN}|{MARKDOWN}(?![0-9])")
HEADING = re.compile(r"^\s*(?:#+|>)\s+")
BRACKETS = re.compile(r"\s*(?:\[(.*)\]|\((.*)\)|\|(.*)\|)\s*")
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
UNITS = r"(?:\s*(?:점|points?))?", r"\s*(?:/|out of)\s*10(?:\s*(?:점|points?))?"
"""Both marks have the same: a point or nothing, or "of ten"."""
BETWEEN = r"(?:\s*[,;]\s+|\s*\|\s*|\s+and\s+|\s*(?:와|과)\s+|\s+)"
ANSWER = r"(?:답변|응답|어시스턴트|assistant|answer|response)\s*"
SAYS = r"(?:의\s*점수)?\s*(?:[:=]|은|는|이|가)\s*"
START, END = rf"\s*(?:{LABEL}s?\s*[:=]?\s*)?", r"(?:\s*입니다)?\s*[.!]?\s*"
PLAIN = [re.compile(START + NUMBER + unit + BETWEEN + NUMBER + unit + END) for unit in UNITS]
LABELLED = [
    re.compile(rf"\s*{ANSWER}1\s*{SAYS}{NUMBER}{unit}(?:{BETWEEN}|\s*[,;/]\s*){ANSWER}2\s*{SAYS}{NUMBER}{unit}{END}")
    for unit in UNITS
]

Values = NDArray[np.float64]


class TwoMarks(NamedTuple):
    first: float | None
    """From 1 to 10; None unless the kind is OK."""
    second: float | None
    kind: str
    """One of `marks.KINDS`."""


class Tally(NamedTuple):
    """What a judge said, over all runs and prompts."""

    wins: int
    losses: int
    ties: int
    left_out: int
    """Prompts that do not count, because a reply about them has no marks."""
    decided: int
    """Pairs that were asked about and have a winner in both orders."""
    flips: float
    """Share of these whose winner changes with the order; NaN if there are none."""
    first_wins: float
    """Share of the replies with a winner in which the first answer wins; NaN if there is none."""
    score: dict[str, float]
    """The winning score, from 0 to 2, with its interval; `too_few` if too few prompts have a winner for one."""


def two_marks_of(reply: str | None, finish_reason: str | None, error: str | None) -> TwoMarks:
    """Return the marks of a reply, or why it has none; the arguments are those of `marks.mark_of`."""
    if error is not None:
        return TwoMarks(None, None, ERROR)
    if reply is None or finish_reason == "content_filter":
        return TwoMarks(None, None, REFUSED)
    lines = plain_lines(reply)
    used = 2 if len(lines) > 1 and (ONLY_LABEL.fullmatch(lines[0]) or not numbers_in(lines[0])) else 1
    found = numbers_in(*lines[:used])
    ends_in_digit = len(lines) <= used and "".join(lines).rstrip()[-1:].isdigit()
    if finish_reason == "length" and (found is None or ends_in_digit):
        return TwoMarks(None, None, CUT)  # a number at the very end may lack its last digits
    if found is None:
        return TwoMarks(None, None, UNPARSED)
    if not all(LOWEST <= mark <= HIGHEST for mark in found):
        return TwoMarks(None, None, OUT_OF_RANGE)
    return TwoMarks(*found, OK)


def plain_lines(reply: str) -> list[str]:
    """Return the lines that have text, in lower case and without markdown. A thought is no part of the reply."""
    lines = unicodedata.normalize("NFKC", THOUGHT.sub("", reply)).lower().splitlines()
    lines = [HEADING.sub("", BULLET.sub("", EMPHASIS.sub("", line))) for line in lines]
    return [line for line in lines if any(character.isalnum() for character in line)]


def numbers_in(line: str = "", second: str | None = None) -> tuple[float, float] | None:
    """Return the two numbers of a line that says nothing else, in any range, or None.

    A second line is read if the first has only a label, or if each line names its answer.
    """
    if enclosed := BRACKETS.fullmatch(line):
        line = next(text for text in enclosed.groups() if text is not None)
    patterns = [*PLAIN, *LABELLED]
    if second is not None:
        is_label = ONLY_LABEL.fullmatch(line)
        line, patterns = (f"{line} {second}", PLAIN) if is_label else (f"{line}, {second}", LABELLED)
    for pattern in patterns:
        if found := pattern.fullmatch(line):
            return float(found[1]), float(found[2])
    return None


def tally(straight_ABN: Values, swapped_ABN: Values, asked_ABN: NDArray[np.bool_], settings: Resampling) -> Tally:
    """Return what the judge said: 1 where ours is the better answer, -1 where theirs is, 0 for a tie, NaN if unread.

    `straight_ABN` is what it said when ours came first, `swapped_ABN` when theirs did. Answers that are equal are ties
    that were not asked. A prompt counts if it was read in all runs. Raises UserError if hardly any was.
    """
    verdicts_ABN = np.sign(straight_ABN + swapped_ABN)
    is_read_N = ~np.isnan(verdicts_ABN).any((0, 1))
    if is_read_N.sum() < LEAST_PROMPTS:
        raise UserError(
            f"only {is_read_N.sum()} of {len(is_read_N)} prompts have two marks in every reply; use another judge"
        )
    verdicts_ABN = verdicts_ABN[:, :, is_read_N]
    counts = [int((verdicts_ABN == side).sum()) for side in (1, -1, 0)]
    both_ABN = straight_ABN * swapped_ABN  # 1 for the same winner, -1 for opposite ones, 0 for a tie in either order
    flipped = both_ABN[asked_ABN & (np.abs(both_ABN) == 1)] < 0
    firsts = np.concatenate([straight_ABN[asked_ABN], -swapped_ABN[asked_ABN]])
    firsts = firsts[np.abs(firsts) == 1]
    shares = [float(found.mean()) if len(found) else float("nan") for found in (flipped, firsts > 0)]
    return Tally(*counts, int((~is_read_N).sum()), len(flipped), *shares, winning_score(verdicts_ABN, settings))


def winning_score(verdicts_ABN: Values, settings: Resampling) -> dict[str, float]:
    """Return the winning score with its 95 % interval: over prompts and runs if both arms have two runs or more.

    A verdict belongs to a run of each arm. So the verdicts are split into what each of our runs has in the mean over
    theirs, and the other way round: the difference between the two is the mean verdict, and each varies like its runs.
    """
    mean_N = verdicts_ABN.mean((0, 1))
    if min(verdicts_ABN.shape[:2]) > 1:
        found = crossed([verdicts_ABN.mean(1) - mean_N / 2], [mean_N / 2 - verdicts_ABN.mean(0)])
        if verdicts_ABN.any((0, 1)).sum() < paired.FEW:
            found |= {"too_few": 1}
    else:
        ones = np.ones(len(mean_N), dtype=np.int64)
        draws = paired.draw_rows(
            mean_N, np.zeros(len(mean_N)), ones, settings.resamples, settings.randomisations, settings.seed
        )
        found = paired.estimate(draws)
    return found | {name: float(np.clip(found[name] + 1, 0, 2)) for name in ("est", "lo", "hi")}


def conclusion(found: Tally, ours: str, theirs: str) -> str:
    """Return what the verdicts say about the answers of two arms."""
    if found.flips > MOST_FLIPS:
        pairs = f"{100 * found.flips:.1f} % of the {found.decided:,} pairs with a winner in both orders"
        return (
            f"this judge cannot tell these answers apart: the order of the answers changes the winner in {pairs} "
            f"(at most {100 * MOST_FLIPS:.0f} % is acceptable)"
        )
    if "too_few" in found.score:
        return "too few prompts have a winner to conclude anything"
    if found.score["lo"] > 1:
        return f"this judge prefers the answers of {ours} to those of {theirs}"
    if found.score["hi"] < 1:
        return f"this judge prefers the answers of {theirs} to those of {ours}"
    return f"no preference found between the answers of {ours} and {theirs}"
