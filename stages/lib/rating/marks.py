"""The mark that a judge's reply gives, or why it gives none.

The mark is on the first line that has text. Nothing is guessed: a line that may mean two marks, or a mark on another
scale, gives none.
"""

import re
import unicodedata
from typing import NamedTuple

OK, UNPARSED, OUT_OF_RANGE, REFUSED, CUT, ERROR = "ok", "unparsed", "out_of_range", "refused", "cut", "error"
KINDS = (OK, UNPARSED, OUT_OF_RANGE, REFUSED, CUT, ERROR)
LOWEST, HIGHEST = 0.0, 10.0
"""The scale that every prompt states."""

THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
DECORATION = re.compile(r"[*_`\"'“”‘’#>\[\]{}]+")
BULLET = re.compile(r"^\s*[-•]\s+")
LABEL = r"(?:점수|평점|총점|\b(?:score|rating))"
ONLY_LABEL = re.compile(rf"\s*{LABEL}[\s:]*")
NUMBER = r"(?<![0-9a-z.,/+-])(-?[0-9]+(?:\.[0-9]+)?)(?!(?!points?\b)[0-9a-z%]|[.,:/~][0-9])"

SCALE = re.compile(
    r"\(?\b0\s*(?:~|-|–|to|부터|에서)\s*10(?![0-9.])\s*(?:점|points?)?\s*(?:척도|만점|까지|scale)?\)?"
    r"|\(?\b10\s*점\s*(?:만점|척도)(?:에서|에|중|으로|기준)?\)?"
    r"|\((?:out of|/)\s*10\)"
)
OF_TEN = re.compile(r"(?<=[0-9])\s*점?\s*(?:/|out of)\s*10(?:\.0+)?(?![0-9%]|[.,/~][0-9])\s*(?:점|points?\b)?")
TWO_NUMBERS = re.compile(r"[0-9]\s*점?\s*(?:[-~–—〜∼/⁄]|to|에서)\s*[0-9]")
"""A range, or a share of another scale."""
MARKED = (
    re.compile(rf"{NUMBER}\s*(?:점(?!대)|points?\b)"),
    re.compile(rf"{LABEL}(?:\([^()]*\)|[은는이가을를:=|\s]|-(?![0-9])|\b(?:is|of)\b)*{NUMBER}"),
    re.compile(rf"\bi(?:d| would| will)? (?:rate|give|score)\b[^0-9.]{{0,60}}?{NUMBER}"),
)
ALONE = re.compile(rf"\s*\(?\s*{NUMBER}\s*\)?\s*(?:[.!]?\s*$|\(|[-–—]\s|[:;,|](?!\s*[0-9])\s)")


class Mark(NamedTuple):
    score: float | None
    """From 0 to 10; None unless the kind is OK."""
    kind: str
    """One of `KINDS`."""


def mark_of(reply: str | None, finish_reason: str | None, error: str | None) -> Mark:
    """Return the mark of a reply; `reply` is None if the judge gave no text, `error` says why there is no reply."""
    if error is not None:
        return Mark(None, ERROR)
    if reply is None or finish_reason == "content_filter":
        return Mark(None, REFUSED)
    line, has_more = first_line(reply)
    score = number_in(line)
    if finish_reason == "length" and (score is None or (not has_more and line.rstrip()[-1:].isdigit())):
        return Mark(None, CUT)  # a number at the very end may lack its last digits
    if score is None:
        return Mark(None, UNPARSED)
    return Mark(score, OK) if LOWEST <= score <= HIGHEST else Mark(None, OUT_OF_RANGE)


def first_line(reply: str) -> tuple[str, bool]:
    """Return the first line that has text, in lower case and without markdown, and whether text follows it.

    A reasoning model's thought is no part of its reply. A line that has only a label is read together with the next.
    """
    plain = unicodedata.normalize("NFKC", THOUGHT.sub("", reply)).lower()
    lines = [BULLET.sub("", DECORATION.sub("", line)) for line in plain.splitlines()]
    lines = [line for line in lines if any(character.isalnum() for character in line)]
    count = 2 if lines and ONLY_LABEL.fullmatch(lines[0]) else 1
    return " ".join(lines[:count]), len(lines) > count


def number_in(line: str) -> float | None:
    """Return the only number that the line gives as a mark, in any range, or None."""
    line = OF_TEN.sub("점 ", SCALE.sub(" ", line))
    if TWO_NUMBERS.search(line):
        return None
    found = {float(number) for pattern in MARKED for number in pattern.findall(line)}
    if not found and (alone := ALONE.match(line)):
        found = {float(alone[1])}
    return found.pop() if len(found) == 1 else None
