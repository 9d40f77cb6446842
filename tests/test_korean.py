"""Which texts are Korean if they contain Latin names, Hanja, ㅋㅋ, code, formulas or other languages."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import merge
from stages.lib.core.params import read_params
from stages.lib.text.korean import (
    answers_in_korean,
    asks_for_other,
    has_foreign_script,
    is_korean,
    korean_share,
    same_text,
    strip_blank,
    without_markup,
)
from tests.project import ROOT

LABELLED = [json.loads(line) for line in (ROOT / "tests/korean_texts.jsonl").read_text("utf-8").splitlines()]
DROP = read_params(merge.Params, ROOT / "params.yaml").merge.drop.model_dump()
WORDS = st.lists(st.sampled_from(["서울의", "날씨는", "Docker", "mode를", "GDP", "(GDP)", "오늘", "3월"]), min_size=1)


def test_of_60_labelled_rows_merge_drops_at_least_57_for_their_reason_or_keeps_them(run_merge):
    dropped = run_merge({"texts": LABELLED}, drop=DROP).dropped
    reasons = dict(zip(dropped["line"], dropped["reason"], strict=True))
    wrong = [row for line, row in enumerate(LABELLED, 1) if reasons.get(line) != row["reason"]]
    assert len(LABELLED) == 60
    assert len(wrong) <= 3, wrong


SHARES = {
    "Docker container의 network mode를 host로 설정하면?": 4 / 6,
    "大韓民國憲法 第1條의 意味를 說明하시오.": 1,
    "ㅋㅋ 뭐예요 ㅠㅠ": 1,
    "LTV(Loan to Value)란 what": 1 / 2,
    "ありがとうございます는 무슨 뜻?": 2 / 3,
    "国会는 어디에?": 1 / 2,
    "“I love you”라고 답했다": 1,
    "“I love you”": 0,
    "2024년 3월": 1,
    "ㅁㄴㅇㄹ 123": None,
    "天地": 0,
}


@pytest.mark.parametrize("text", SHARES)
def test_the_share_is_of_words_with_a_hangul_syllable(text):
    assert korean_share(text) == SHARES[text]


@given(WORDS, st.lists(st.sampled_from(["ㅋㅋ", "ㅠㅠ", "大學", "!!", "12", "😀"])))
def test_jamo_hanja_digits_and_emoji_do_not_change_the_share_of_a_text_with_hangul(words, neutral):
    text = " ".join([*words, "서울"])
    assert korean_share(" ".join([text, *neutral])) == korean_share(text)


MARKUP = {
    "fences": "이 코드는?\n```python\nwhile True:\n    pass  # 반복\n```\n끝",
    "inline code": "`git rebase`가 뭐예요?",
    "code without fences": "이게 뭐죠?\nfor (int i = 0; i < 3; i++) {\n    print(i);\n}\n",
    "URL": "https://example.com/a_b?c=d에서 찾은 글입니다 www.example.com 참고",
    "mail": "help@example.co.kr로 보내세요",
    "HTML": "<p class='big'>안녕<br/></p>&nbsp;<!-- note --><script>let x</script>",
    "LaTeX": r"$a+b$와 $$c$$ 그리고 \begin{cases} x \end{cases} 또 \(y\)의 \alpha 값",
}


@pytest.mark.parametrize("kind", MARKUP)
def test_markup_is_taken_out_but_not_the_hangul_around_it(kind):
    plain = without_markup(MARKUP[kind])
    assert not [letter for letter in plain if letter.isalpha() and letter.isascii()]
    assert [word for word in ("코드", "가", "이게", "에서", "로", "안녕", "와") if word in plain]


def test_text_that_only_looks_like_markup_stays():
    text = "사과는 $5이고 배는 $7입니다. a < b 이면 <김치찌개 끓이는 법>을 봅니다. `를 씁니다 `"
    assert without_markup(text) == text


@pytest.mark.parametrize("text", ["3 + 4 =", "12÷4", "(1.5−0.5)×2", "３＋４", "3 + 4는?"])
def test_arithmetic_needs_no_hangul(text):
    assert is_korean(text, 1)


@pytest.mark.parametrize("text", ["12345", "3 + x", "=", "왜", "ㅋㅋ 3+4", "```\n안녕하세요\n```"])
def test_text_of_only_digits_formulas_code_or_one_syllable_is_not_korean(text):
    assert not is_korean(text, 0)


ENGLISH = (
    "Sea levels rise, and storms grow stronger every year.\nWe must act now, not later.\nThat is all there is to say"
)


@pytest.mark.parametrize("text", [f"다음 글의 주제는?\n{ENGLISH}", f"{ENGLISH}\n위 글의 주제는?"])
def test_a_korean_request_before_or_after_foreign_text_is_korean(text):
    assert korean_share(text) < 0.2
    assert is_korean(text, 0.2)


@pytest.mark.parametrize("text", [f"서울\n{ENGLISH}", f"{ENGLISH}\n(출처: 서울)\n{ENGLISH}"])
def test_foreign_text_with_a_korean_name_or_line_inside_is_not_korean(text):
    assert not is_korean(text, 0.2)


ASKS = {
    "이 글을 영어로 옮겨 줘": True,
    "한국어로 쓴 이 글을 일본어로 번역해 줘": True,
    "다음을 번역하시오.": True,
    "Translate into English: 사과": True,
    "피보나치 함수를 작성해 줘": True,
    "SQL로 하려면?": True,
    "다음 영어 문장을 한국어로 번역하세요.": False,
    "이차함수의 최댓값은?": False,
    "아침에 일찍 일어나는 법": False,
    "이 단어로 글짓기": False,
}


@pytest.mark.parametrize("instruction", ASKS)
def test_an_instruction_that_asks_for_code_or_another_language_is_recognised(instruction):
    assert asks_for_other(instruction) == ASKS[instruction]


def test_a_few_foreign_words_may_be_the_answer_and_a_sentence_may_not():
    question = "제일 많이 쓰이는 브라우저는?"
    assert all(answers_in_korean(question, answer, 0.5) for answer in ("Google Chrome", "北京", "ㅇㅇ", "42", "B"))
    wrong = (
        "It is Google Chrome.",
        "这是谷歌公司的浏览器。",
        "それはクロームです。",
        "Chrome은 a web browser by Google",
    )
    assert not any(answers_in_korean(question, answer, 0.5) for answer in wrong)


FOREIGN = {
    ("인사말은?", "먼저 привет 하고 말하세요."): True,
    ("인사말은?", "먼저 สวัสดี 하고 말하세요."): True,
    ("인사말은?", "먼저 元気하고 말하세요."): True,
    ("인사말은?", "먼저 ‘привет’(привет) 하고 말하세요."): False,
    ("인사말은?", "러시아어로는 привет 하고 말합니다."): False,
    ("привет 뜻은?", "привет 뜻은 안녕입니다."): False,
    ("인사말은?", "溫故知新이라고 말하세요 ヽ(´▽`)ノ α와 β, 가・나"): False,
    ("인사말은?", "привет"): False,
}


@pytest.mark.parametrize("row", FOREIGN)
def test_a_foreign_script_in_a_korean_answer_needs_a_reason(row):
    assert has_foreign_script(*row) == FOREIGN[row]


@pytest.mark.parametrize("blank", ["\u3164", "\u200b", "\ufeff", "\u200b \n\ufeff", "\u115f\u1160"])
def test_invisible_characters_are_blank_and_those_inside_a_text_stay(blank, run_merge):
    assert strip_blank(f"{blank}가\u200b나{blank}") == "가\u200b나"
    rows = [{"instruction": "시를 써 줘", "output": output} for output in (blank, f"{blank}답")]
    merged = run_merge({"life": rows})
    assert (list(merged.dropped["reason"]), list(merged.raw["output"])) == (["empty"], ["답"])


def test_what_an_instruction_is_about_does_not_decide_whether_it_is_korean(run_merge):
    row = {
        "ask": "한국어로 번역해 줘",
        "about": "The train was late again this morning.",
        "output": "기차가 또 늦었다.",
    }
    columns = {"life": {"instruction": ["ask", "about"]}}
    assert len(run_merge({"life": [row]}, columns=columns, drop={"min_korean": 1.0}).raw) == 1


SAME = [
    ("만드는 법", "만드는법"),
    ("왜 그래?!", "왜 그래"),
    ("“ＡＢＣ” 은행", "abc은행"),
    ("제 1조", "제1조"),
    ("끝.", "끝"),
]
DIFFERENT = [("5-6", "56"), ("1.5", "15"), ("3 4", "34"), ("-1", "1"), ("3~4", "34"), ("a+b", "ab"), ("ㅋㅋ", "ㅋ")]


@pytest.mark.parametrize("pair", [*SAME, *DIFFERENT])
def test_spaces_and_punctuation_do_not_make_another_text_but_operators_do(pair):
    one, other = map(same_text, pair)
    assert (one == other) == (pair in SAME)


@given(st.text("가나 \n.,?!3-", max_size=12))
def test_the_normalised_text_is_that_of_its_nfd_form(text):
    assert same_text(unicodedata.normalize("NFD", text)) == same_text(text)
