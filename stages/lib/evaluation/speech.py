"""Find the sentences of a Korean text, and tell their speech level by their endings."""

import re
from typing import NamedTuple

HANGUL = "가-힣"
MARKER = re.compile(r"^\s*(?:[-*•·▪◦>]\s+|#{1,6}\s+|\d{1,3}[.)]\s+|[①-⑳]\s*)+")
"""What begins a list item, a heading or a quoted line."""
BRACKETED = re.compile(r"\([^()\n]*\)|（[^（）\n]*）")
QUOTATION = re.compile(r"""“[^”\n]*”|‘[^’\n]*’|「[^」\n]*」|『[^』\n]*』|"[^"\n]*"|(?<!\w)'[^'\n]*'(?![A-Za-z])""")
CONTINUES = re.compile(r"""[\s.,!?]{0,5}[^\s.,!?"“'‘]""")
"""What follows a quotation inside a sentence. After a quotation of whole sentences, another may follow."""
NEAR = 20
"""Characters before a quotation that are looked at."""
ELLIPSIS = re.compile(r"\.{2,}|[…⋯]+")
CLOSED = re.compile(r"[.?!。！？…⋯][\s\"'”’*_)~^ㄱ-ㆎ]*$")


def syllables_with(final: str) -> str:
    """Return all syllables with this final consonant, such as `악` with that of `악`."""
    first = ord("가") + (ord(final) - ord("가")) % 28
    return "".join(map(chr, range(first, ord("힣") + 1, 28)))


B, N, L, SS = map(syllables_with, "압안알았")
BOUNDARY = re.compile(
    rf"""(?<=[?!。！？])(?=[\s{HANGUL}"'”’])
    | (?<=[^\d\W]\.)(?<!(?<![A-Za-z])[A-Za-z]\.)(?=[^\w.,])      # no number's full stop, and no initial's
    | (?<=[{HANGUL}]\.)(?=[{HANGUL}])
    | (?<=["'”’)\]%〃]\.)(?=\s)
    | (?:(?<=[{B}]니[다까])|(?<=[아어해여예에세네지까군]요)|(?<=죠))(?=\s+(?![라하]고\b|라[는며]\b))
    """,
    re.VERBOSE,
)
"""What separates sentences in a line: after a mark, or after an ending that is always the last."""
LEVELS = {
    "합쇼체": re.compile(rf"(?:[{B}](?:니[다까]|시다)|십시[오요])$"),
    "해요체": re.compile(r"(?:(?<![필중주수강민동개소담])(?<!십시)요|죠)$"),
    "해라체": re.compile(
        rf"(?:(?<![{B}]니)(?<![{B}]시)다|[냐자라랴렴]|구나|[는은던{N}]가|[{L}]까|[하{SS}]니)$",
    ),
}
"""The last letters of a sentence. 아니다 is 해라체, because its 니 follows no ㅂ. 필요 and 중요 are no endings."""
CLEAR = re.compile(rf"(?:[{B}]니[다까]|십시[오요]|(?<![필중주수강민동개소담])요|죠|[{SS}{N}하이]다|[{SS}]어)$")
"""Endings that no noun has. 의자, 바다 and 전문가 look like endings of 해라체."""
INTERJECTION = re.compile("네|예|응|아니요|아뇨|아니|안녕|글쎄|그럼|물론|와|아|오|음|자|참")


class Sentence(NamedTuple):
    text: str
    ended: bool
    """Whether it surely ends: with a mark and outside a list, or with one of the endings in `CLEAR`."""


def last_word(text: str) -> str:
    return next(reversed(re.findall(f"[{HANGUL}]+", text)), "")


def korean_sentences(text: str) -> list[Sentence]:
    """Return the sentences of a Korean text, without what is in brackets, and with 〃 for a quotation inside one.

    A sentence ends at a full stop, question or exclamation mark, at a polite ending before a space
    (`좋아요 또 갈게요`), and at the end of its line. None ends at 3.5, `1.`, an ellipsis inside a line, or inside a
    quotation in a sentence (`"가자. 빨리!"라고 말했다.`). A line without mark and ending, as a title or `- 물 마시기`,
    is no sentence, but a text always has one.
    """
    found = []
    for line in text.splitlines():
        marker = MARKER.match(line)
        plain = without_quotations(BRACKETED.sub("", line[marker.end() :] if marker else line)).strip()
        pieces = [piece.strip() for piece in BOUNDARY.split(ELLIPSIS.sub(" ", plain)) if re.search(r"\w", piece)]
        for number, piece in enumerate(pieces):
            closed = bool(CLOSED.search(plain if number == len(pieces) - 1 else piece))
            clear = bool(CLEAR.search(last_word(piece)))
            if number or closed or clear:
                found.append(Sentence(piece, clear or (closed and not marker)))
    return found or [Sentence(text, False)]


def without_quotations(line: str) -> str:
    """Return the line with 〃 for each quotation that is part of a sentence, and not all of it."""

    def replaced(quotation: re.Match[str]) -> str:
        before = line[max(0, quotation.start() - NEAR) : quotation.start()].rstrip()
        continues = CONTINUES.match(line, quotation.end())
        return "〃" if continues or (before and not CLOSED.search(before)) else quotation[0]

    return QUOTATION.sub(replaced, line)


def in_level(text: str, level: str) -> bool:
    """Return whether all sentences that surely end have the speech level, a key of `LEVELS`, and there is one.

    So titles, list items and cut ends are not judged, and neither are `네.` and other interjections.
    """
    ended = [one.text for one in korean_sentences(text) if one.ended]
    judged = [one for one in ended if not INTERJECTION.fullmatch(re.sub(r"[\W\d]", "", one))]
    return bool(judged) and all(LEVELS[level].search(last_word(one)) for one in judged)
