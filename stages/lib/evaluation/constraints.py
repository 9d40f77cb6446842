"""Check whether a Korean answer satisfies a constraint that its prompt states.

The ids and arguments are those of IFEval (Zhou et al. 2023, arXiv 2311.07911; google-research,
instruction_following_eval), as allganize/IFEval-Ko uses them, and Korean ones (`ko:`) of our own. IFEval's checks are
made for English, so these differ. They are never looser, except that options and quotation marks may be Korean:

- An empty answer satisfies nothing. (There, it is in any language, and has no comma and no forbidden word.)
- keywords: a keyword is found whatever particles follow it (한국어 in 한국어로), and not by `\\b`, which finds no end
  between them. The spaces in a keyword are optional (`기후 변화`, 기후변화). A keyword of one syllable must be a word with
  or without particles, because 물 is also in 선물 and 물론. Keywords are texts, not regular expressions.
- number_words counts 어절: words between spaces with a letter or digit.
- number_sentences: see `sentences`; there, a model of English sentences.
- number_paragraphs, nth_paragraph_first_word: paragraphs are separated by `***`, or by blank lines if there is none. The
  first word may have particles.
- number_placeholders: brackets with nothing inside are none.
- postscript: begins a line after the first, and has a text.
- number_bullet_lists: a bullet (- * •) is followed by a space, so neither `---` nor `-3` is one.
- number_highlighted_sections: **굵게** counts once.
- multiple_sections: a heading begins its line, and different numbers count.
- json_format: an object or an array.
- constrained_response: the options are `options`, or else the quotations in the prompt, or else IFEval-Ko's three.
- repeat_prompt: spaces may differ; a text must follow that is not in the prompt.
- end_checker, starts_with: spaces, quotation marks and asterisks around the answer do not matter.
- quotation: Korean quotation marks (“ ”) count too.
- no_comma: wide and ideographic commas count too.
- response_language: Korean by its share of Korean words, the others by their script; languages that share the Latin
  script by their most frequent words (Grefenstette 1995), as `LANGUAGES` has them. Others that share a script are not
  told apart: Russian and Bulgarian, Hindi and Marathi, Arabic and Persian.
- change_case and letter_frequency, which are about Latin letters, do not exist here or in IFEval-Ko.

The Korean ones:

- ko:syllables counts syllables of Hangul; ko:numbered_list the items 1., 2., ... that begin lines, in order.
- ko:speech_level: every sentence ends in 합쇼체, 해요체 or 해라체: see `in_level`.
- ko:hangul_only: every letter is Hangul. Digits and punctuation are free.
- ko:acrostic: line i begins with syllable i of the word (삼행시).
- ko:starts_with: begins with the phrase.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

from stages.lib.text.korean import korean_share, strip_blank, without_markup

HANGUL = "가-힣"
KOREAN_SHARE = 0.5
"""Share of Korean words from which an answer is Korean."""
OTHER_SHARE = 0.8
"""Share of its letters that an answer in another script has."""


class Asked(NamedTuple):
    """An answer and the prompt that it answers, both in NFC and without blanks at the ends."""

    prompt: str
    answer: str


def follows(id: str, arguments: dict[str, Any], prompt: str, answer: str) -> bool:
    """Return whether an answer to `prompt` satisfies the constraint `id` with its arguments (`prompts.ARGUMENTS`).

    A blank answer satisfies none. Raises nothing, whatever the texts.
    """
    asked = Asked(*(strip_blank(unicodedata.normalize("NFC", text)) for text in (prompt, answer)))
    return bool(asked.answer) and CHECKS[id](asked, **arguments)


def compare_count(count: int, relation: str, bound: int) -> bool:
    return {
        "less than": count < bound,
        "at least": count >= bound,
        "at most": count <= bound,
        "exactly": count == bound,
    }[relation]


# Keywords

PARTICLE = (
    "은|는|이|가|을|를|의|에|에서|에게|에게서|께|께서|한테|로|으로|와|과|랑|이랑|도|만|까지|부터|처럼|보다|마다|조차|마저|밖에|"
    "라도|이라도|나|이나|든지|하고|이며|며|야|아|여|이여|요|뿐|대로|만큼|같이|들|란|이란|라는|이라는|라고|이라고|입니다|입니까|이다|다|"
    "이에요|예요|인|이고|고|이지만|지만|이라|라|일|이었다|였다|이었습니다|였습니다"
)
WORD_END = rf"(?:{PARTICLE}){{0,4}}(?![{HANGUL}A-Za-z0-9])"


def occurrences(keyword: str, text: str) -> int:
    """Return how often the keyword is in the text, whatever particles follow."""
    words = keyword.split()
    pattern = r"\s*".join(map(re.escape, words))
    if re.match("[A-Za-z0-9]", pattern):
        pattern = f"(?<![A-Za-z0-9]){pattern}"
    if re.search("[A-Za-z0-9]$", pattern):
        pattern = f"{pattern}(?![A-Za-z0-9])"
    if re.fullmatch(f"[{HANGUL}]", keyword.strip()):
        pattern = rf"(?<![{HANGUL}A-Za-z0-9]){pattern}{WORD_END}"
    return len(re.findall(pattern, text, re.IGNORECASE))


def has_keywords(asked: Asked, keywords: list[str]) -> bool:
    return all(occurrences(keyword, asked.answer) for keyword in keywords)


def has_keyword_often(asked: Asked, keyword: str, frequency: int, relation: str) -> bool:
    return compare_count(occurrences(keyword, asked.answer), relation, frequency)


def has_no_forbidden_word(asked: Asked, forbidden_words: list[str]) -> bool:
    return not any(occurrences(word, asked.answer) for word in forbidden_words)


# Sentences and their endings

MARKER = re.compile(r"^\s*(?:[-*•·▪◦>]\s+|#{1,6}\s+|\d{1,3}[.)]\s+|[①-⑳]\s*)+")
"""What begins a list item, a heading or a quoted line."""
BRACKETED = re.compile(r"\([^()\n]*\)|（[^（）\n]*）")
QUOTATION = re.compile(r"""“[^”\n]*”|‘[^’\n]*’|「[^」\n]*」|『[^』\n]*』|"[^"\n]*"|(?<!\w)'[^'\n]*'(?![A-Za-z])""")
NEAR = 20
"""Characters around a quotation that are looked at."""
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


def sentences(text: str) -> list[Sentence]:
    """Return the sentences of a Korean text, without what is in brackets, and with 〃 for a quotation inside one.

    A sentence ends at a full stop, question or exclamation mark, at a polite ending before a space (`좋아요 또 갈게요`),
    and at the end of its line. None ends at 3.5, `1.`, an ellipsis inside a line, or inside a quotation in a sentence
    (`"가자. 빨리!"라고 말했다.`). A line without mark and ending, as a title or `- 물 마시기`, is no sentence, but a text
    always has one.
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
    """Return the line with 〃 for each quotation inside a sentence: one that more text surrounds than whole sentences."""

    def replaced(quotation: re.Match[str]) -> str:
        before = line[max(0, quotation.start() - NEAR) : quotation.start()].rstrip()
        after = line[quotation.end() : quotation.end() + NEAR].lstrip(" .,!?\"“'‘")
        return "〃" if after or (before and not CLOSED.search(before)) else quotation[0]

    return QUOTATION.sub(replaced, line)


def has_sentences(asked: Asked, num_sentences: int, relation: str) -> bool:
    return compare_count(len(sentences(asked.answer)), relation, num_sentences)


def in_level(asked: Asked, level: str) -> bool:
    """Return whether all sentences that surely end have the speech level, and there is one.

    So titles, list items and cut ends are not judged, and neither are `네.` and other interjections.
    """
    ended = [one.text for one in sentences(asked.answer) if one.ended]
    judged = [text for text in ended if not INTERJECTION.fullmatch(re.sub(r"[\W\d]", "", text))]
    return bool(judged) and all(LEVELS[level].search(last_word(text)) for text in judged)


# Lengths

DIVIDER = re.compile(r"(?<!\*)\*{3}(?!\*)")
BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


def has_words(asked: Asked, num_words: int, relation: str) -> bool:
    lines = [MARKER.sub("", line) for line in asked.answer.splitlines()]
    words = [word for line in lines for word in line.split() if re.search(r"[^\W_]", word)]
    return compare_count(len(words), relation, num_words)


def has_syllables(asked: Asked, num_syllables: int, relation: str) -> bool:
    return compare_count(len(re.findall(f"[{HANGUL}]", asked.answer)), relation, num_syllables)


def paragraphs(text: str) -> list[str]:
    divider = DIVIDER if DIVIDER.search(text) else BLANK_LINE
    return [part.strip() for part in divider.split(text) if part.strip()]


def has_paragraphs(asked: Asked, num_paragraphs: int) -> bool:
    return len(paragraphs(asked.answer)) == num_paragraphs


def has_first_word(asked: Asked, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    found = paragraphs(asked.answer)
    if len(found) != num_paragraphs:
        return False
    pattern = rf"[\W_]*{re.escape(first_word)}{WORD_END}"
    return bool(re.match(pattern, found[nth_paragraph - 1], re.IGNORECASE))


# Contents and formats

FENCE = re.compile(r"\A```\w*\s*\n?(.*?)\s*```\Z", re.DOTALL)
KO_OPTIONS = ["제 답변은 예입니다.", "제 답변은 아니요입니다.", "제 답변은 아마도입니다."]
"""allganize/IFEval-Ko @ 54199e3, ifeval_ko/instructions.py."""


def has_placeholders(asked: Asked, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*[^\W_][^\[\]\n]*\]", asked.answer)) >= num_placeholders


def has_postscript(asked: Asked, postscript_marker: str) -> bool:
    marker = r"\s?".join(map(re.escape, re.sub(r"\s", "", postscript_marker)))
    return bool(re.search(rf"\n[\s*_]*{marker}[\W_]*[^\W_]", asked.answer, re.IGNORECASE))


def has_bullets(asked: Asked, num_bullets: int) -> bool:
    return len(re.findall(r"^[^\S\n]*[-*•·▪◦][^\S\n]+\S", asked.answer, re.MULTILINE)) == num_bullets


def has_numbered_list(asked: Asked, num_items: int) -> bool:
    found = re.findall(r"^[^\S\n]*(\d{1,3})[.)][^\S\n]+\S", asked.answer, re.MULTILINE)
    return [int(number) for number in found] == list(range(1, num_items + 1))


def has_highlights(asked: Asked, num_highlights: int) -> bool:
    return len(re.findall(r"\*\*\S[^*\n]*\*\*|(?<!\*)\*[^\s*][^*\n]*\*", asked.answer)) >= num_highlights


def has_sections(asked: Asked, section_spliter: str, num_sections: int) -> bool:
    heading = rf"^[\s#*\[<(【]*{re.escape(section_spliter.strip())}\s?(\d+)"
    return len(set(re.findall(heading, asked.answer, re.MULTILINE | re.IGNORECASE))) >= num_sections


def is_json(asked: Asked) -> bool:
    fenced = FENCE.match(asked.answer)
    try:
        return isinstance(json.loads(fenced[1] if fenced else asked.answer), dict | list)
    except (ValueError, RecursionError):
        return False


def has_title(asked: Asked) -> bool:
    return bool(re.search(r"<<[^<>\n]*[^\W_][^<>\n]*>>", asked.answer))


def is_one_of(asked: Asked, options: list[str] | None = None) -> bool:
    quoted = [text[1:-1].strip() for text in QUOTATION.findall(asked.prompt)]
    return any(option in asked.answer for option in options or [text for text in quoted if text] or KO_OPTIONS)


def repeats_prompt(asked: Asked, prompt_to_repeat: str) -> bool:
    repeated, answer, prompt = (spaced(text) for text in (prompt_to_repeat, asked.answer, asked.prompt))
    rest = answer.removeprefix(repeated).strip()
    return answer.startswith(repeated) and bool(re.search(r"\w", rest)) and rest not in prompt


def spaced(text: str) -> str:
    """Return the text in lower case with one space between words."""
    return " ".join(text.casefold().split())


def has_two_responses(asked: Asked) -> bool:
    parts = [part.strip() for part in asked.answer.split("******")]
    inner = parts[1:-1] if len(parts) > 2 else parts
    return all(inner) and len(set(parts) - {""}) == 2 and sum(map(bool, parts)) == 2


# Starts, ends and languages

WRAPPING = " \t\n\"'“”‘’*_`"
SCRIPTS = {
    "ja": "ぁ-ゖァ-ヺー㐀-鿿", "zh": "㐀-鿿", "th": "\u0e00-\u0e7f", "he": "\u0590-\u05ff", "el": "\u0370-\u03ff",
    "bn": "\u0980-\u09ff", "ta": "\u0b80-\u0bff", "te": "\u0c00-\u0c7f", "kn": "\u0c80-\u0cff", "gu": "\u0a80-\u0aff",
    "pa": "\u0a00-\u0a7f", "ml": "\u0d00-\u0d7f", "hi": "\u0900-\u097f", "mr": "\u0900-\u097f", "ne": "\u0900-\u097f",
    "ar": "\u0600-\u06ff", "fa": "\u0600-\u06ff", "ur": "\u0600-\u06ff", "ru": "Ѐ-ӿ", "bg": "Ѐ-ӿ", "uk": "Ѐ-ӿ",
}  # fmt: skip
LATIN = "A-Za-zÀ-ɏḀ-ỿ"
COMMON = {
    "en": "the of and to in is that it for you with are this be on",
    "de": "der die und das ist nicht ein eine zu mit sie ich den auf für",
    "fr": "le la les et des est une que pour dans vous qui pas du sur",
    "es": "el la los y que es una por con para las del se no en",
    "pt": "o a os e que não uma para com em do da é um você",
    "it": "il la che di e è un una per non con del della sono le",
    "fi": "ja on ei se että hän oli ovat mutta kun tai niin myös joka ole",
    "vi": "và là của có không được cho một những với các này trong người bạn",
    "sw": "na ya wa kwa ni katika la za kuwa hii cha yako kama au watu",
}
"""The most frequent words of the languages in Latin script."""
LANGUAGES = {"ko", *SCRIPTS, *COMMON}


def starts_with(asked: Asked, phrase: str) -> bool:
    return spaced(asked.answer.strip(WRAPPING)).startswith(spaced(phrase.strip(WRAPPING)))


def ends_with(asked: Asked, end_phrase: str) -> bool:
    return spaced(asked.answer.strip(WRAPPING)).endswith(spaced(end_phrase.strip(WRAPPING)))


def is_quoted(asked: Asked) -> bool:
    pairs = {'"': '"', "“": "”", "＂": "＂"}
    inside = asked.answer[1:-1]
    return pairs.get(asked.answer[0]) == asked.answer[-1:] and bool(re.search(r"\w", inside))


def has_no_comma(asked: Asked) -> bool:
    return not re.search("[,，、،﹐﹑､]", asked.answer)


def is_hangul_only(asked: Asked) -> bool:
    letters = [letter for letter in asked.answer if letter.isalpha()]
    return bool(letters) and all(re.match(rf"[{HANGUL}ㄱ-ㆎ\u1100-\u11ff]", letter) for letter in letters)


def is_acrostic(asked: Asked, word: str) -> bool:
    lines = [re.sub(r"^[\W_]+", "", line) for line in asked.answer.splitlines()]
    lines = [line for line in lines if line]
    return len(lines) == len(word) and all(
        line.startswith(syllable) and re.search(r"\w", line[1:]) for line, syllable in zip(lines, word, strict=True)
    )


def is_in_language(asked: Asked, language: str) -> bool:
    text = without_markup(asked.answer)
    if language == "ko":
        return (korean_share(text) or 0.0) >= KOREAN_SHARE
    letters = [letter for letter in text if letter.isalpha()]
    script = re.compile(f"[{SCRIPTS.get(language, LATIN)}]")
    if not letters or sum(bool(script.match(letter)) for letter in letters) < OTHER_SHARE * len(letters):
        return False
    if language == "ja":
        return bool(re.search("[ぁ-ゖァ-ヺ]", text))
    return language in SCRIPTS or language == most_common_words(text)


def most_common_words(text: str) -> str | None:
    """Return the language in Latin script whose frequent words the text has most often; None without any."""
    words = re.findall(rf"[{LATIN}]+", text.lower())
    hits = {name: sum(word in common.split() for word in words) for name, common in COMMON.items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] else None


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": has_keywords,
    "keywords:frequency": has_keyword_often,
    "keywords:forbidden_words": has_no_forbidden_word,
    "length_constraints:number_words": has_words,
    "length_constraints:number_sentences": has_sentences,
    "length_constraints:number_paragraphs": has_paragraphs,
    "length_constraints:nth_paragraph_first_word": has_first_word,
    "detectable_content:number_placeholders": has_placeholders,
    "detectable_content:postscript": has_postscript,
    "detectable_format:number_bullet_lists": has_bullets,
    "detectable_format:number_highlighted_sections": has_highlights,
    "detectable_format:multiple_sections": has_sections,
    "detectable_format:json_format": is_json,
    "detectable_format:title": has_title,
    "detectable_format:constrained_response": is_one_of,
    "combination:repeat_prompt": repeats_prompt,
    "combination:two_responses": has_two_responses,
    "startend:end_checker": ends_with,
    "startend:quotation": is_quoted,
    "punctuation:no_comma": has_no_comma,
    "language:response_language": is_in_language,
    "ko:syllables": has_syllables,
    "ko:speech_level": in_level,
    "ko:hangul_only": is_hangul_only,
    "ko:numbered_list": has_numbered_list,
    "ko:starts_with": starts_with,
    "ko:acrostic": is_acrostic,
}
