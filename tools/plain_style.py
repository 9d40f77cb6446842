"""Rewrite Korean from the formal polite style into the plain one: 김치를 넣고 끓입니다 into 김치를 넣고 끓인다.

A verb's ending depends on what the word is: 먹습니다 is 먹는다, but the adjective 좋습니다 is 좋다. So a sentence is
rewritten only if it is certain what its last word is.
"""

import re
import unicodedata

SENTENCE = re.compile(r"[^.?!]+[.?!]")
VERBS = ("끓", "쓰", "보", "졸", "움직", "줄", "높", "붙", "녹", "모", "먹", "죽", "속", "숙", "절", "기울")
"""What comes before 입니다 in verbs; after other words it is 이다."""
ADJECTIVES = (
    *("좋습", "알맞습", "쉽습", "어렵습", "많습", "아름답습", "안전합", "유명합", "편합", "편리합", "중요합", "쾌적합"),
    *(
        "아닙",
        "충분합",
        "만합",
        "뛰어납",
        "필요합",
        "다양합",
        "비슷합",
        "간단합",
        "가능합",
        "튼튼합",
        "신선합",
        "깨끗합",
    ),
)
PAST, N = (unicodedata.normalize("NFD", syllable)[-1] for syllable in "았안")
"""The final consonants ㅆ, of the past and of 있다, and ㄴ."""
UNCERTAIN = re.compile(r"(?:[^가-힣]입|않습|못합|낫습|하[기지][는도] 합|[깁멉힘듭]습?)니다$")
"""않습니다 is 않는다 after a verb and 않다 after an adjective."""


def to_plain_style(text: str) -> str | None:
    """Return the text in the plain style; None if one of its sentences is not formal, or cannot be rewritten safely."""
    sentences = SENTENCE.findall(text)
    if not sentences or "".join(sentences) != text:
        return None
    plain = [to_plain_sentence(sentence.removesuffix(".")) for sentence in sentences]
    return ".".join([*filter(None, plain), ""]) if all(plain) else None


def to_plain_sentence(sentence: str) -> str | None:
    """Return the sentence, given without its full stop."""
    *_, last = sentence.split() or [""]
    stem = last.removesuffix("니다")
    if stem == last or UNCERTAIN.search(sentence):
        return None
    before = sentence.removesuffix("니다")
    if stem.endswith(ADJECTIVES):
        return (before.removesuffix("습") if stem.endswith("습") else with_final(before, "")) + "다"
    if stem.endswith("입") and not stem.removesuffix("입").endswith(VERBS):
        return before.removesuffix("입") + "이다"
    if stem.endswith("습"):
        is_past = unicodedata.normalize("NFD", stem.removesuffix("습")).endswith(PAST)
        return before.removesuffix("습") + ("다" if is_past else "는다")
    return with_final(before, N) + "다"


def with_final(text: str, final: str) -> str:
    """Return the text with another final consonant in place of its last one, which is ㅂ."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text)[:-1] + final)
