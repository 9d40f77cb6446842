"""Check whether a Korean answer satisfies a constraint that its prompt states.

The ids and arguments are those of IFEval (Zhou et al. 2023, arXiv 2311.07911; google-research,
instruction_following_eval), as allganize/IFEval-Ko uses them, and Korean ones (`ko:`) of our own. IFEval's checks are
made for English, so these differ:

- An answer without a letter or a digit satisfies nothing. (There, it is in any language, and has no comma and no
  forbidden word.)
- keywords: a keyword is found whatever particles follow it (한국어 in 한국어로). There, `\\b` finds no end between
  them. The spaces in a keyword are optional (`기후 변화`, 기후변화). A keyword of one syllable must be a word, with or
  without particles, because 물 is also in 선물 and 물론. Keywords are texts, not regular expressions.
- number_words counts 어절: words between spaces that have a letter or digit.
- number_sentences: see `speech.korean_sentences`. There, a model of English sentences.
- number_paragraphs, nth_paragraph_first_word: paragraphs are separated by `***`, or by blank lines if there is none.
  The first word may have particles.
- number_placeholders: brackets with nothing inside are none.
- postscript: begins a line after the first, and has a text.
- number_bullet_lists: a bullet (- * •) is followed by a space, so neither `---` nor `-3` is one.
- number_highlighted_sections: **굵게** counts once.
- multiple_sections: a heading begins its line, and different numbers count.
- json_format: an object or an array.
- constrained_response: the options are `options`. Without, they are IFEval-Ko's three if the prompt has one of them or
  quotes nothing, or else what it quotes.
- repeat_prompt: spaces may differ; text that is not in the prompt must follow.
- end_checker, starts_with: spaces, quotation marks and asterisks around the answer do not matter.
- quotation: Korean quotation marks (“ ”) count too.
- no_comma: wide and ideographic commas count too.
- response_language: Korean by its share of Korean words, the others by their script; languages that share the Latin
  script by their most frequent words (Grefenstette 1995), as `COMMON` has them. Others that share a script are not
  told apart: Russian and Bulgarian, Hindi and Marathi, Arabic and Persian.
- change_case and letter_frequency, which are about Latin letters, do not exist here or in IFEval-Ko.

The Korean ones:

- ko:syllables counts syllables of Hangul; ko:numbered_list the items 1., 2., ... that begin lines, in order.
- ko:speech_level: every sentence ends in 합쇼체, 해요체 or 해라체: see `speech.in_level`.
- ko:hangul_only: every letter is Hangul. Digits and punctuation are free.
- ko:acrostic: line i begins with syllable i of the word (삼행시).
- ko:starts_with: begins with the phrase.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

from stages.lib.evaluation.speech import HANGUL, MARKER, QUOTATION, in_level, korean_sentences
from stages.lib.text.korean import korean_share, strip_blank, without_markup

KOREAN_SHARE = 0.5
"""Share of Korean words from which an answer is Korean."""
OTHER_SHARE = 0.8
"""Share of its letters that an answer in another script has."""


class Given(NamedTuple):
    """An answer and the prompt that it answers, both in NFC and without blanks at the ends."""

    prompt: str
    answer: str


def follows(constraint: str, arguments: dict[str, Any], prompt: str, answer: str) -> bool:
    """Return whether an answer to `prompt` satisfies a constraint, by its id and arguments (`prompts.ARGUMENTS`).

    An answer without a letter or a digit satisfies none. Raises nothing, whatever the texts.
    """
    given = Given(*(strip_blank(unicodedata.normalize("NFC", text)) for text in (prompt, answer)))
    return any(map(str.isalnum, given.answer)) and CHECKS[constraint](given, **arguments)


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


def has_keywords(given: Given, keywords: list[str]) -> bool:
    return all(occurrences(keyword, given.answer) for keyword in keywords)


def has_keyword_often(given: Given, keyword: str, frequency: int, relation: str) -> bool:
    return compare_count(occurrences(keyword, given.answer), relation, frequency)


def has_no_forbidden_word(given: Given, forbidden_words: list[str]) -> bool:
    return not any(occurrences(word, given.answer) for word in forbidden_words)


# Sentences and lengths

DIVIDER = re.compile(r"(?<!\*)\*{3}(?!\*)")
BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


def has_sentences(given: Given, num_sentences: int, relation: str) -> bool:
    return compare_count(len(korean_sentences(given.answer)), relation, num_sentences)


def is_in_level(given: Given, level: str) -> bool:
    return in_level(given.answer, level)


def has_words(given: Given, num_words: int, relation: str) -> bool:
    lines = [MARKER.sub("", line) for line in given.answer.splitlines()]
    words = [word for line in lines for word in line.split() if re.search(r"[^\W_]", word)]
    return compare_count(len(words), relation, num_words)


def has_syllables(given: Given, num_syllables: int, relation: str) -> bool:
    return compare_count(len(re.findall(f"[{HANGUL}]", given.answer)), relation, num_syllables)


def paragraphs(text: str) -> list[str]:
    divider = DIVIDER if DIVIDER.search(text) else BLANK_LINE
    return [part.strip() for part in divider.split(text) if part.strip()]


def has_paragraphs(given: Given, num_paragraphs: int) -> bool:
    return len(paragraphs(given.answer)) == num_paragraphs


def has_first_word(given: Given, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    found = paragraphs(given.answer)
    if len(found) != num_paragraphs:
        return False
    pattern = rf"[\W_]*{re.escape(first_word)}{WORD_END}"
    return bool(re.match(pattern, found[nth_paragraph - 1], re.IGNORECASE))


# Contents and formats

FENCE = re.compile(r"\A```\w*\s*\n?(.*?)\s*```\Z", re.DOTALL)
KO_OPTIONS = ["제 답변은 예입니다.", "제 답변은 아니요입니다.", "제 답변은 아마도입니다."]
"""allganize/IFEval-Ko @ 54199e3, ifeval_ko/instructions.py."""


def has_placeholders(given: Given, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*[^\W_][^\[\]\n]*\]", given.answer)) >= num_placeholders


def has_postscript(given: Given, postscript_marker: str) -> bool:
    marker = r"\s?".join(map(re.escape, re.sub(r"\s", "", postscript_marker)))
    return bool(re.search(rf"\n[\s*_]*{marker}[\W_]*[^\W_]", given.answer, re.IGNORECASE))


def has_bullets(given: Given, num_bullets: int) -> bool:
    return len(re.findall(r"^[^\S\n]*[-*•·▪◦][^\S\n]+\S", given.answer, re.MULTILINE)) == num_bullets


def has_numbered_list(given: Given, num_items: int) -> bool:
    found = re.findall(r"^[^\S\n]*(\d{1,3})[.)][^\S\n]+\S", given.answer, re.MULTILINE)
    return [int(number) for number in found] == list(range(1, num_items + 1))


def has_highlights(given: Given, num_highlights: int) -> bool:
    return len(re.findall(r"\*\*\S[^*\n]*\*\*|(?<!\*)\*[^\s*][^*\n]*\*", given.answer)) >= num_highlights


def has_sections(given: Given, section_spliter: str, num_sections: int) -> bool:
    heading = rf"^[\s#*\[<(【]*{re.escape(section_spliter.strip())}\s?(\d+)"
    return len(set(re.findall(heading, given.answer, re.MULTILINE | re.IGNORECASE))) >= num_sections


def is_json(given: Given) -> bool:
    fenced = FENCE.match(given.answer)
    try:
        return isinstance(json.loads(fenced[1] if fenced else given.answer), dict | list)
    except (ValueError, RecursionError):
        return False


def has_title(given: Given) -> bool:
    return bool(re.search(r"<<[^<>\n]*[^\W_][^<>\n]*>>", given.answer))


def is_one_of(given: Given, options: list[str] | None = None) -> bool:
    return any(option in given.answer for option in options or options_in(given.prompt))


def options_in(prompt: str) -> list[str]:
    """Return the options that a prompt offers. A prompt with IFEval-Ko's options may also quote what it asks about."""
    quoted = [text[1:-1].strip() for text in QUOTATION.findall(prompt)]
    theirs = any(option in prompt for option in KO_OPTIONS)
    return KO_OPTIONS if theirs else [text for text in quoted if text] or KO_OPTIONS


def repeats_prompt(given: Given, prompt_to_repeat: str) -> bool:
    repeated, answer, prompt = (spaced(text) for text in (prompt_to_repeat, given.answer, given.prompt))
    rest = answer.removeprefix(repeated).strip()
    return answer.startswith(repeated) and bool(re.search(r"\w", rest)) and rest not in prompt


def spaced(text: str) -> str:
    """Return the text in lower case with one space between words."""
    return " ".join(text.casefold().split())


def has_two_responses(given: Given) -> bool:
    parts = [part.strip() for part in given.answer.split("******")]
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


def starts_with(given: Given, phrase: str) -> bool:
    return spaced(given.answer.strip(WRAPPING)).startswith(spaced(phrase.strip(WRAPPING)))


def ends_with(given: Given, end_phrase: str) -> bool:
    return spaced(given.answer.strip(WRAPPING)).endswith(spaced(end_phrase.strip(WRAPPING)))


def is_quoted(given: Given) -> bool:
    pairs = {'"': '"', "“": "”", "＂": "＂"}
    inside = given.answer[1:-1]
    return pairs.get(given.answer[0]) == given.answer[-1:] and bool(re.search(r"\w", inside))


def has_no_comma(given: Given) -> bool:
    return not re.search("[,，、،﹐﹑､]", given.answer)


def is_hangul_only(given: Given) -> bool:
    letters = [letter for letter in given.answer if letter.isalpha()]
    return bool(letters) and all(re.match(rf"[{HANGUL}ㄱ-ㆎ\u1100-\u11ff]", letter) for letter in letters)


def is_acrostic(given: Given, word: str) -> bool:
    lines = [re.sub(r"^[\W_]+", "", line) for line in given.answer.splitlines()]
    lines = [line for line in lines if line]
    return len(lines) == len(word) and all(
        line.startswith(syllable) and re.search(r"\w", line[1:]) for line, syllable in zip(lines, word, strict=True)
    )


def is_in_language(given: Given, language: str) -> bool:
    text = without_markup(given.answer)
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
    "ko:speech_level": is_in_level,
    "ko:hangul_only": is_hangul_only,
    "ko:numbered_list": has_numbered_list,
    "ko:starts_with": starts_with,
    "ko:acrostic": is_acrostic,
}
