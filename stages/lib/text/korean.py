"""Tell whether an instruction and its answer are Korean, whatever they contain besides Hangul.

Korean is measured in 어절, the words between spaces. Of `Docker container의 network mode를 host로 설정하면?` only
0.19 of the letters are Hangul, but four of six words contain a Hangul syllable, because particles and endings do.

- Jamo (ㅋㅋ, ㅠㅠ, ㅁㄴㅇㄹ) are not counted.
- Words of Hanja are not counted if the text has Hangul. Hanja are the Chinese characters of KS X 1001; all others
  (气, 国) are foreign, because only Chinese and Japanese use them.
- Code, URLs, HTML and LaTeX are taken out first. So are quotations and brackets without Hangul, unless nothing is left:
  `LTV(Loan to Value)란?` is one Korean word.
"""

import re
import unicodedata

HANJA = unicodedata.normalize(
    "NFC", b"".join(bytes([row, cell]) for row in range(0xCA, 0xFE) for cell in range(0xA1, 0xFF)).decode("euc_kr")
)
"""Rows 42 to 93 of KS X 1001."""
OTHER = r"\u0400-\u10ff\u1780-\u17ffぁ-ゖァ-ヺｦ-ﾝ"
"""Cyrillic to Georgian (Hebrew, Arabic, Hindi and Thai are between them), Khmer, kana."""
JAMO = r"\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\ud7b0-\ud7fb"
SYLLABLE = re.compile("[가-힣]")
KOREAN_WORD = re.compile(r"\S*[가-힣]\S*")
LETTER = re.compile(rf"[^\W\d_{JAMO}]")
NOT_HANGUL = re.compile(rf"[^\W\d_{JAMO}가-힣]")
NOT_HANJA = re.compile(rf"[^\W\d_{JAMO}{HANJA}]")
FOREIGN = re.compile(f"[{OTHER}]|(?![{HANJA}])[㐀-鿿]")
RUN = re.compile(f"[{OTHER}㐀-鿿ー]{{2,}}")
"""At least two letters, because emoticons have single ones: ヽ(´▽`)."""
UNSPACED = re.compile(f"[{OTHER}㐀-鿿]")
BLANK = r"[\s\u00ad\u034f\u115f\u1160\u180e\u200b-\u200f\u2060-\u2064\u2800\u3164\ufeff\uffa0]+"
"""Spaces and invisible characters: U+3164 (Hangul filler), U+200B, U+FEFF, ..."""
EDGES = re.compile(rf"\A{BLANK}|{BLANK}\Z")
BROKEN = re.compile(r"[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")
"""U+FFFD and private-use characters, which come from wrong encodings and from custom fonts."""

MARKUP = re.compile(
    r"""
      ^[ \t]*```[^`\n]*\n (?s:.*?) ^[ \t]*```                       # code between fences
    | `[^`\n가-힣]+`                                                # code in a line
    | \\begin\{(\w+\*?)\} (?s:.*?) \\end\{\1\}                      # LaTeX
    | \$\$[^$가-힣]+\$\$ | \$[^$\n가-힣]+\$ | \\[(\[][^가-힣]*?\\[)\]] | \\[a-zA-Z]+
    | <(script|style)\b (?s:.*?) </\2> | <!-- (?s:.*?) -->          # HTML
    | </?[a-zA-Z][a-zA-Z0-9-]* (?:\s[^<>]*)? /?> | &(?:[a-zA-Z]+|\#\d+);
    | (?:https?://|www\.)[^\s가-힣]+ | (?<![\w.+-])[a-zA-Z0-9_.+-]+@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+
    | ^(?!.*[가-힣]).*(?:[{}=\\].*|[;():,>\]][ \t]*)$              # a line of code, by its signs or its last one
    """,
    re.MULTILINE | re.VERBOSE,
)
QUOTED = re.compile(
    r"""“[^”가-힣]*”|‘[^’가-힣]*’|"[^"\n가-힣]*"|(?<!\w)'[^'\n가-힣]*'(?![a-zA-Z])|"""
    r"""[(（\[「『《〈][^()（）\[\]「」『』《》〈〉가-힣]*[)）\]」』》〉]"""
)
"""A quotation or a bracket without Hangul."""
ARITHMETIC = re.compile(r"(?=.*\d)(?=.*[-+−*/×÷=^<>＋－＝])[\W\d가-힣]+", re.DOTALL)
"""Digits and operators, with no letters but Hangul: 3 + 4는?"""

LANGUAGE = (
    "(?:(?:영|일본|중국|독일|프랑스|스페인|러시아|이탈리아|포르투갈|라틴|그리스|아랍|히브리|터키|튀르키예|베트남|태국|"
    "인도네시아|말레이|몽골|산스크리트|외국)어|영문|일문|한문|한자|로마자|힌디|에스페란토|가타카나|히라가나)"
)
"""Without 일어, 불어 and the like, because 일어나다 and 불어나다 contain them."""
INTO_OTHER = re.compile(
    rf"""{LANGUAGE}\ ?로 | 영작 | \b(?:in|into|to)\ (?:English|Japanese|Chinese)
    | ``` | 코드 | 코딩 | 프로그래밍 | 스크립트 | 쿼리 | 명령어 | 정규\ ?(?:표현)?식 | 함수를?\ (?:작성|구현|만들|짜)
    | 파이썬 | 자바 | Python | Java | C\+\+ | SQL | HTML | CSS | JSON | XML | YAML | LaTeX | Markdown | regex""",
    re.VERBOSE | re.IGNORECASE,
)
"""A request for another language, or for code."""
ABOUT_OTHER = re.compile(f"{LANGUAGE}|번역|통역|translat", re.IGNORECASE)
"""What is a request for another language unless the instruction asks for Korean."""
INTO_KOREAN = re.compile("(?:한국어|한글|우리말|국문)로|(?:in|into|to) Korean", re.IGNORECASE)
SIGNS = re.escape(".,:;~!?…·•\"'“”‘’「」『』《》〈〉()[]{}、。_*`")
PUNCTUATION = re.compile(rf"[{SIGNS}]+(?![\d{SIGNS}])|(?<!\d)\s+|\s+(?!\d)")
"""But no punctuation before a digit (.5), no space between digits, and no operator: 5-6 is not 56."""
FEW = 3
"""Most words of a foreign answer that may be a name, a number or a choice: `Google Chrome`."""


def strip_blank(text: str) -> str:
    """Return the text without spaces and invisible characters at its ends."""
    return EDGES.sub("", text)


def is_korean(text: str, share: float) -> bool:
    """Return whether an instruction is arithmetic, or has at least two Hangul syllables and this share of Korean words.

    A first or last line of two or more Korean words may also have the share by itself, because the other lines may be
    the text that it asks about.
    """
    if ARITHMETIC.fullmatch(text):
        return True
    plain = without_markup(text).strip()
    lines = plain.split("\n")
    asked = [plain, *(line for line in (lines[0], lines[-1]) if len(KOREAN_WORD.findall(line)) >= 2)]
    return len(SYLLABLE.findall(plain)) >= 2 and any((korean_share(part) or 0.0) >= share for part in asked)


def answers_in_korean(instruction: str, output: str, share: float) -> bool:
    """Return whether at least this share of the output's words is Korean, or none need to be.

    None need to be if the instruction asks for another language or for code, or if the words are so few that they may
    be a name.
    """
    plain = without_markup(output)
    korean = korean_share(plain)
    if korean is None or korean >= share or asks_for_other(instruction):
        return True
    return not SYLLABLE.search(plain) and max(len(plain.split()), len(UNSPACED.findall(plain)) // 2) <= FEW


def asks_for_other(instruction: str) -> bool:
    """Return whether the instruction asks for code, or for a language other than Korean."""
    if INTO_OTHER.search(instruction):
        return True
    return bool(ABOUT_OTHER.search(instruction)) and not INTO_KOREAN.search(instruction)


def has_foreign_script(instruction: str, output: str) -> bool:
    """Return whether a Korean output has two or more letters of a foreign script together without a good reason.

    A good reason: they are in quotation marks or brackets, the instruction or the output names a language, or the
    instruction has a foreign script too.
    """
    if not FOREIGN.search(output):
        return False
    plain = QUOTED.sub("", without_markup(output))
    if not (SYLLABLE.search(plain) and any(map(FOREIGN.search, RUN.findall(plain)))):
        return False
    return not (FOREIGN.search(instruction) or ABOUT_OTHER.search(f"{instruction}\n{output}"))


def has_broken_characters(text: str) -> bool:
    """Return whether the text has U+FFFD or a private-use character."""
    return bool(BROKEN.search(text))


def without_markup(text: str) -> str:
    """Return the text without code, URLs, HTML and LaTeX."""
    return MARKUP.sub(" ", text)


def korean_share(plain: str) -> float | None:
    """Return the share of words with a Hangul syllable in a text without markup; None if no word counts."""
    if not NOT_HANGUL.search(plain):
        return 1.0 if SYLLABLE.search(plain) else None
    counted = NOT_HANJA if SYLLABLE.search(plain) else LETTER
    for part in (QUOTED.sub("", plain), plain):
        words = [word for word in part.split() if SYLLABLE.search(word) or counted.search(word)]
        if words:
            return sum(map(is_korean_word, words)) / len(words)
    return None


def is_korean_word(word: str) -> bool:
    """Return whether the word has Hangul syllables, and at least as many as letters of foreign scripts.

    Without this rule, one syllable would make a whole Japanese sentence, which has no spaces, a Korean word.
    """
    syllables = len(SYLLABLE.findall(word))
    return 0 < syllables >= len(FOREIGN.findall(word))


def same_text(text: str) -> str:
    """Return the text in a form that is equal for texts that differ only in spaces, punctuation, case and width."""
    return PUNCTUATION.sub("", unicodedata.normalize("NFKC", text).casefold())
