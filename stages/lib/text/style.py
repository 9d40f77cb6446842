"""Find a sentence in another style of speech: 정우는 치과에 예약을 하였다, 정우가 치과 예약을 했어요.

Two sentences are equal if their letters are, after particles and the ending are taken out and the rest is contracted
(하였 is 했). Endings are found in jamo, because they begin inside syllables: ㅂ니다 in 합니다.
"""

import re
from collections.abc import Iterator, Sequence
from unicodedata import normalize

from stages.lib.text.overlap import PARTICLES, Rule, normalise, overlapping, split_sentences


def jamo(text: str) -> str:
    return normalize("NFD", text)


CONTRACTED = {
    jamo(long)[1:]: jamo(short)[1:]  # without the first consonant, which may be any
    for long, short in [
        ("오아", "와"), ("우어", "워"), ("이어", "여"), ("외어", "왜"),
        ("아아", "아"), ("어어", "어"), ("애어", "애"), ("에어", "에"), ("여어", "여"),
    ]
} | {jamo("하여"): jamo("해")}  # fmt: skip
CONTRACTIONS = re.compile("|".join(CONTRACTED))
B, N, L = (jamo(syllable)[-1] for syllable in "압안알")
"""The final consonants ㅂ, ㄴ, ㄹ."""
ENDING = re.compile(
    jamo(rf"(?:(?:습|{B})니(?:다|까)|{N}?다|{L}까|냐|니|인|{N}|어|아|여|음|지|죠|네|군|구|거든|데|야|예)$")
)
"""Endings of a sentence after particles are taken out: 는다 is 다, 어요 is 어, 인가요 is 인."""
OPEN = {jamo(short)[1:]: jamo(long)[1:] for short, long in [("와", "오"), ("워", "우"), ("여", "이"), ("왜", "외")]}
LAST = re.compile(f"(?:{'|'.join(OPEN)}|{jamo('해')})$")
CORE = 5
"""Fewest letters that must be left of a text. With fewer, the sentence is too common: 눈이 건조해."""
LONGEST = 40
"""Letters of the longest text to look for. In a longer one, another style changes so little that it is a near copy."""


def restyled(rows: Sequence[tuple[str, str]], texts: Sequence[str], ngram: int) -> Iterator[tuple[int, int]]:
    """Yield (row, text) if a sentence of the row (instruction, output) is the text in another style of speech."""
    short = {number: without_style(text) for number, text in enumerate(texts) if len(text) <= LONGEST}
    cores = {number: core for number, core in short.items() if len(core) >= max(CORE, ngram + 1)}
    if not cores:
        return
    wholes = [contracted(f"{instruction}\n{output}") for instruction, output in rows]
    numbers = list(cores)
    sentences: dict[int, set[str]] = {}  # of one row
    for row, position in overlapping(wholes, [core[:-1] for core in cores.values()], Rule(ngram, 1.0, 1)):
        if row not in sentences:
            sentences = {row: set(map(without_style, split_sentences(*rows[row])))}
        if cores[numbers[position]] in sentences[row]:
            yield row, numbers[position]


def without_style(sentence: str) -> str:
    """Return the letters of the sentence without particles and ending."""
    letters = ENDING.sub("", jamo(contracted(sentence)))
    return PARTICLES.sub("", normalize("NFC", LAST.sub(lambda end: OPEN.get(end[0], jamo("하")), letters)))


def contracted(text: str) -> str:
    """Return the letters of the text without particles, contracted."""
    letters = jamo(PARTICLES.sub("", normalise(text)))
    return normalize("NFC", CONTRACTIONS.sub(lambda long: CONTRACTED[long[0]], letters))
