"""Every constraint against hand-written Korean answers, and reading the prompts that state them."""

import json
from pathlib import Path
from typing import get_args
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.core.artifacts import read_jsonl, write_jsonl
from stages.lib.core.errors import UserError
from stages.lib.evaluation.constraints import CHECKS, COMMON, SCRIPTS, follows
from stages.lib.evaluation.prompts import ARGUMENTS, Language, read_prompts
from stages.lib.evaluation.speech import korean_sentences
from tests.project import ROOT

YES, NO = True, False
QUESTION = "오늘 날씨를 알려 주세요. '맑음' 또는 '흐림'으로만 답하세요."
CASES = [
    ("keywords:existence", {"keywords": ["한국어"]}, {
        "저는 한국어로 답합니다.": YES,
        "한국어는 재미있다": YES,
        normalize("NFD", "한국어를 배운다."): YES,
        "저는 한국말로 답합니다.": NO,
        "한국 어로": NO,
        "Korean": NO,
    }),
    ("keywords:existence", {"keywords": ["기후 변화", "AI"]}, {
        "기후변화를 AI로 살핀다.": YES,
        "ai는 기후\n변화를 안다.": YES,
        "기후 변화를 안다.": NO,
        "기후 변화를 SAID라고": NO,
    }),
    ("keywords:existence", {"keywords": ["물"]}, {
        "물을 마셔요.": YES,
        "맑은 물에서는 물고기가 산다.": YES,
        "이것은 물입니다.": YES,
        "선물을 받았어요.": NO,
        "물론이죠.": NO,
    }),
    ("keywords:frequency", {"keyword": "봄", "frequency": 2, "relation": "at least"}, {
        "봄이 오고 봄비가 온다. 봄은 짧다.": YES,
        "봄이다. 봄!": YES,
        "봄이 왔다.": NO,
        "봄비, 봄바람, 봄나물": NO,
        "여름이 왔다.": NO,
        "한봄에 새봄을": NO,
    }),
    ("keywords:frequency", {"keyword": "나무", "frequency": 2, "relation": "exactly"}, {
        "나무 옆에 나무가 있다.": YES,
        "사과나무와 나무": YES,
        "나무가 있다.": NO,
        "나무, 나무, 나무": NO,
    }),
    ("keywords:frequency", {"keyword": "나무", "frequency": 2, "relation": "less than"}, {
        "나무가 있다.": YES, "꽃이 있다.": YES, "나무와 나무": NO,
    }),
    ("keywords:forbidden_words", {"forbidden_words": ["한국어", "말"]}, {
        "영어로 답해요.": YES,
        "양말을 신어요.": YES,
        "주말마다 쉬어요.": YES,
        "한국어로 답해요.": NO,
        "그는 말이 없다.": NO,
        "이 말, 저 말.": NO,
        "한국어": NO,
    }),
    ("length_constraints:number_words", {"num_words": 4, "relation": "exactly"}, {
        "나는 오늘 밥을 먹었다.": YES,
        "- 나는 오늘\n- 밥을 먹었다": YES,
        "1. 물을 잘 마시고 자기": YES,
        "Python으로 코드를 3번 짰다": YES,
        "나는 — 오늘 밥을 먹었다 !": YES,
        "나는 밥을 먹었다.": NO,
        "나는오늘밥을먹었다.": NO,
    }),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, {
        "물을 마신다": YES, "물": YES, "물을 또 마신다": NO,
    }),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "exactly"}, {
        "물은 하루 3.5리터가 알맞습니다. 자주 드세요.": YES,
        '그는 "가자. 빨리 와!"라고 말했다. 나는 웃었다.': YES,
        "1. 물을 끓인다.\n2. 면을 넣는다.": YES,
        "너무 좋았어요 또 갈게요": YES,
        "글쎄... 잘 모르겠어요. 미안해요…": YES,
        "제목: 우리 동네\n\n조용하다. 공기도 맑다.": YES,
        "갑니다.그리고 옵니다.": YES,
        '"가자!" "그래!"': YES,
        '그렇습니다. "안녕하세요." 이렇게 인사합니다.': YES,
        "비가 와요.😊 내일도 와요~": YES,
        "정말요?! 네, 그래요!": YES,
        "한 문장입니다.": NO,
        "하나다. 둘이다. 셋이다.": NO,
        "2024. 3. 5. 서울에서 만났다.": NO,
    }),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, {
        "왔다. 봤다. 이겼다.": YES, "왔다(그때. 거기서.) 봤다.": NO, "- 물\n- 불": NO,
    }),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, {
        "첫째입니다.\n\n둘째입니다.": YES,
        "첫째입니다.\n  \n\n둘째입니다.": YES,
        "첫째입니다.\n***\n둘째입니다.": YES,
        "첫째입니다.\n\n그대로 첫째\n***\n둘째입니다.": YES,
        "첫째입니다.\n둘째입니다.": NO,
        "첫째\n\n둘째\n\n셋째": NO,
        "***\n첫째\n***": NO,
    }),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "강릉"}, {
        "제주는 섬이다.\n\n강릉은 도시다.": YES,
        "제주는 섬이다.\n\n강릉에서는 커피를 마신다.": YES,
        '제주\n\n"강릉"으로 가자': YES,
        "제주는 섬이다.\n\n강릉역에 갔다.": NO,
        "강릉은 도시다.\n\n제주는 섬이다.": NO,
        "제주\n\n강릉\n\n부산": NO,
        "강릉은 도시다.": NO,
    }),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, {
        "[이름] 님, [날짜]에 뵙겠습니다.": YES,
        "[이름][주소][전화]": YES,
        "[주문 번호]와 [address]": YES,
        "[이름] 님": NO,
        "[ ] 청소 [] 빨래": NO,
        "(이름) 님, {날짜}": NO,
    }),
    ("detectable_content:postscript", {"postscript_marker": "추신"}, {
        "잘 지내.\n추신: 또 봐.": YES,
        "잘 지내.\n\n**추신** 또 봐.": YES,
        "잘 지내.\n  추신. 또 쓸게": YES,
        "추신을 쓰라고 했지만 안 쓴다.": NO,
        "잘 지내. 추신: 또 봐.": NO,
        "잘 지내.\n추신:": NO,
    }),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, {
        "안녕.\nP.S. 또 봐.": YES, "안녕.\np. s. 또 봐.": YES, "안녕.\nP.P.S. 또 봐.": NO, "안녕. PS": NO,
    }),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, {
        "- 물\n- 불": YES,
        "* 물\n* 불": YES,
        "준비물\n • 물\n • 불\n---\n끝": YES,
        "- 물": NO,
        "- 물\n- 불\n- 흙": NO,
        "-3도\n-5도": NO,
        "1. 물\n2. 불": NO,
    }),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, {
        "*물*과 *불*": YES,
        "**물**과 *불*": YES,
        "* *물*\n* **불**과 공기": YES,
        "**물**": NO,
        "* 물\n* 불": NO,
        "물 ** ** 불 **": NO,
    }),
    ("detectable_format:multiple_sections", {"section_spliter": "섹션", "num_sections": 2}, {
        "섹션 1\n물\n섹션 2\n불": YES,
        "## 섹션1: 물\n## 섹션2: 불": YES,
        "**섹션 1** 물\n**섹션 2** 불\n**섹션 3** 흙": YES,
        "섹션 1\n물": NO,
        "섹션 1과 섹션 2를 쓰겠다.": NO,
        "섹션 하나\n섹션 둘": NO,
        "섹션 1\n섹션 1": NO,
    }),
    ("detectable_format:json_format", {}, {
        '{"이름": "사과"}': YES,
        '```json\n{"값": [1, 2]}\n```': YES,
        '["물", "불"]': YES,
        "27": NO,
        '{"이름": "사과",}': NO,
        '답은 {"이름": "사과"}입니다.': NO,
        "[" * 100_000: NO,
    }),
    ("detectable_format:title", {}, {
        "<<가을>>\n낙엽이 진다.": YES,
        "낙엽이 진다.\n<< 봄 노래 >>": YES,
        "# <<여름>>": YES,
        "<가을>\n낙엽": NO,
        "<<>>\n낙엽": NO,
        "<<가을\n노래>>": NO,
        "《가을》": NO,
    }),
    ("detectable_format:constrained_response", {"options": ["네.", "아니요."]}, {
        "네.": YES, "아니요.": YES, "**네.**": YES, "네": NO, "예.": NO, "아니오.": NO,
    }),
    ("detectable_format:constrained_response", {}, {
        "맑음": YES, "답: 흐림": YES, "비": NO, "제 답변은 예입니다.": NO,
    }),
    ("combination:repeat_prompt", {"prompt_to_repeat": "오늘 날씨를 알려 주세요."}, {
        "오늘 날씨를 알려 주세요. 맑습니다.": YES,
        "오늘  날씨를 알려\n주세요.\n\n비가 옵니다.": YES,
        "오늘 날씨를 알려 주세요. 3도": YES,
        "오늘 날씨를 알려 주세요.": NO,
        "네. 오늘 날씨를 알려 주세요. 맑습니다.": NO,
        "오늘 날씨를 알려주세요. 맑습니다.": NO,
        QUESTION: NO,
    }),
    ("combination:two_responses", {}, {
        "칼국수\n******\n냉면": YES,
        "******칼국수******냉면******": YES,
        "칼국수 ****** 냉면": YES,
        "칼국수\n***\n냉면": NO,
        "칼국수\n******\n칼국수": NO,
        "칼국수\n******": NO,
        "칼국수\n******\n******\n냉면": NO,
        "칼국수******냉면******비빔밥": NO,
    }),
    ("startend:end_checker", {"end_phrase": "또 만나요."}, {
        "잘 지내요. 또 만나요.": YES,
        '"잘 지내요. 또 만나요."': YES,
        "잘 지내요.\n또  만나요.\n": YES,
        "또 만나요. 안녕!": NO,
        "또 만나요": NO,
        "또 만나자.": NO,
    }),
    ("startend:quotation", {}, {
        '"안녕하세요."': YES,
        "“안녕하세요.”": YES,
        ' "안녕."\n': YES,
        "안녕하세요.": NO,
        '"안녕" 하고 말했다.': NO,
        '""': NO,
        '"': NO,
        "'안녕'": NO,
    }),
    ("punctuation:no_comma", {}, {
        "물과 불이 있다.": YES,
        "물·불·흙": YES,
        "3.5리터; 네 잔": YES,
        "물, 불": NO,
        "1,200원": NO,
        "물，불": NO,
        "水、火": NO,
    }),
    ("language:response_language", {"language": "ko"}, {
        "한국어로 답합니다.": YES,
        "Docker container의 network mode를 host로 설정합니다.": YES,
        "大韓民國은 나라다.": YES,
        "I answer in English.": NO,
        "日本語で答えます。": NO,
        "ㅋㅋㅋㅋ": NO,
        "123 456": NO,
    }),
    ("language:response_language", {"language": "en"}, {
        "It is the best day of the year.": YES, "Das ist nicht gut.": NO, "오늘은 the best day입니다.": NO,
    }),
    ("language:response_language", {"language": "ja"}, {
        "これは水です。": YES, "這是水。": NO, "이것은 물입니다.": NO,
    }),
    ("language:response_language", {"language": "de"}, {
        "Das ist nicht gut und nicht neu.": YES, "This is not good.": NO, "12": NO,
    }),
    ("language:response_language", {"language": "hi"}, {"यह पानी है।": YES, "이것은 물입니다.": NO}),
    ("ko:syllables", {"num_syllables": 5, "relation": "exactly"}, {
        "안녕하세요": YES,
        "안녕하세요! 😊": YES,
        normalize("NFD", "안녕하세요"): YES,
        "Hi 안녕하세요 123": YES,
        "안녕하세요ㅎㅎ": YES,
        "안녕": NO,
        "안녕하십니까": NO,
        "hello": NO,
    }),
    ("ko:syllables", {"num_syllables": 3, "relation": "at most"}, {"가나다": YES, "가 나": YES, "가나다라": NO}),
    ("ko:speech_level", {"level": "합쇼체"}, {
        "비가 옵니다. 우산을 챙기십시오.": YES,
        "안녕하십니까? 반갑습니다!": YES,
        "1. 물을 끓입니다.\n2. 면을 넣습니다.": YES,
        "준비물\n- 물\n- 불\n이것으로 충분합니다.": YES,
        '친구가 "빨리 와."라고 했습니다.': YES,
        "네. 그렇습니다(웃음).": YES,
        "비가 옵니다. 우산을 챙기세요.": NO,
        "이것은 물이 아니다.": NO,
        "비가 와.": NO,
        "맑음": NO,
        "It is 맑습니다. Good day.": NO,
    }),
    ("ko:speech_level", {"level": "해요체"}, {
        "비가 와요. 우산을 챙기세요.": YES,
        "그렇죠? 저도 그래요ㅎㅎ": YES,
        "너무 좋았어요 또 갈게요": YES,
        "그가 “간다.”고 했어요.": YES,
        "비가 옵니다.": NO,
        "휴식이 필요.": NO,
        "비가 와요. 우산을 챙겨.": NO,
        "어서 가십시요.": NO,
        "과자": NO,
    }),
    ("ko:speech_level", {"level": "해라체"}, {
        "비가 왔다. 우산을 챙겨라.": YES,
        "이것은 물이 아니다.": YES,
        "왜 그럴까? 아무도 모른다.": YES,
        "사람은 왜 사는가. 함께 가자.": YES,
        "밥은 먹었니? 나는 먹었다.": YES,
        "비가 옵니다.": NO,
        "함께 갑시다.": NO,
        "비가 왔어.": NO,
        "- 의자\n- 바다": NO,
    }),
    ("ko:hangul_only", {}, {
        "물을 마셔요!": YES,
        "물 3잔 (하루)": YES,
        "좋아요 ㅎㅎ": YES,
        "CPU를 확인해요.": NO,
        "大學에 가요.": NO,
        "カフェ에 가요.": NO,
        "123": NO,
    }),
    ("ko:numbered_list", {"num_items": 2}, {
        "1. 물\n2. 불": YES,
        "준비물\n1) 물\n2) 불\n끝": YES,
        "  1. 물은 3.5리터\n  2. 불": YES,
        "1. 물": NO,
        "1. 물\n3. 불": NO,
        "1. 물 2. 불": NO,
        "- 물\n- 불": NO,
        "1. 물\n2. 불\n3. 흙": NO,
    }),
    ("ko:starts_with", {"phrase": "옛날 옛적에"}, {
        "옛날 옛적에 호랑이가 살았다.": YES,
        "“옛날  옛적에 호랑이가": YES,
        "**옛날 옛적에**": YES,
        "아주 옛날 옛적에": NO,
        "옛날옛적에": NO,
        "호랑이": NO,
    }),
    ("ko:acrostic", {"word": "바다"}, {
        "바람이 분다\n다시 온다": YES,
        "바: 바람이 분다\n\n다: 다시 온다": YES,
        "**바**람\n**다**리": YES,
        "바람이 분다\n나는 간다": NO,
        "바람이 분다": NO,
        "바\n다": NO,
        "바람\n다리\n라면": NO,
    }),
]  # fmt: skip


def test_signs_without_a_letter_follow_nothing():
    for name, arguments in (
        ("ko:syllables", {"num_syllables": 30, "relation": "at most"}),
        ("punctuation:no_comma", {}),
    ):
        assert not follows(name, arguments, "무엇입니까?", "| | | |")


@pytest.mark.parametrize(("name", "kwargs", "answers"), CASES, ids=[name for name, _, _ in CASES])
def test_an_answer_follows_a_constraint_or_not(name, kwargs, answers):
    assert {answer: follows(name, kwargs, QUESTION, answer) for answer in answers} == answers
    assert ARGUMENTS[name].model_validate(kwargs)


def test_every_constraint_has_six_answers_and_both_outcomes():
    assert set(CHECKS) == set(ARGUMENTS) == {name for name, _, _ in CASES}
    for name in CHECKS:
        outcomes = [outcome for other, _, answers in CASES if other == name for outcome in answers.values()]
        assert len(outcomes) >= 6, name
        assert {*outcomes} == {YES, NO}, name


@pytest.mark.parametrize("blank", ["", "  \n", "\u200b\u3164\ufeff"])
def test_a_blank_answer_follows_nothing(blank):
    assert not any(follows(name, kwargs, QUESTION, blank) for name, kwargs, _ in CASES)


WORDS = st.sampled_from(
    ['"', "“", "'", "(", "[", "]", "<<", "***", "```", "정답:", "1. ", "- ", "다.", "요 ", "{", "\n"]
)


@given(st.lists(WORDS | st.text(max_size=8), max_size=20).map("".join))
def test_no_text_stops_a_check(text):
    for name, kwargs, _ in CASES:
        assert follows(name, kwargs, text, text) in (True, False)
    assert korean_sentences(text)


def test_options_that_the_prompt_does_not_quote_are_those_of_ifeval_ko():
    assert follows("detectable_format:constrained_response", {}, "예, 아니요로 답하세요.", "제 답변은 예입니다.")


def test_options_of_ifeval_ko_in_the_prompt_are_the_only_ones():
    options = "'제 답변은 예입니다.', '제 답변은 아니요입니다.', '제 답변은 아마도입니다.'"
    prompt = f"'별 헤는 밤'은 윤동주의 시입니까? {options} 가운데 하나로 답하세요."
    answers = {"제 답변은 예입니다.": YES, "'별 헤는 밤'은 윤동주의 시입니다.": NO}
    assert {one: follows("detectable_format:constrained_response", {}, prompt, one) for one in answers} == answers


def test_a_word_is_also_found_in_a_longer_one():
    """Limits that the docs state."""
    for longer in ("의사소통이 중요해요.", "주의사항을 읽으세요."):
        assert not follows("keywords:forbidden_words", {"forbidden_words": ["의사"]}, QUESTION, longer)
    first = {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "사랑"}
    assert follows("length_constraints:nth_paragraph_first_word", first, QUESTION, "사랑나라에 갔다.")


def test_the_languages_that_a_prompt_may_name_are_those_that_are_recognised():
    assert set(get_args(Language)) == {"ko", *SCRIPTS, *COMMON}


# Reading prompts

NULLS = dict.fromkeys([
    "capital_frequency", "end_phrase", "first_word", "forbidden_words", "frequency", "keyword", "keywords", "language",
    "let_frequency", "letter", "nth_paragraph", "num_bullets", "num_highlights", "num_paragraphs", "num_placeholders",
    "num_sections", "num_sentences", "num_words", "postscript_marker", "prompt_to_repeat", "relation",
    "section_spliter",
])  # fmt: skip
"""Arguments of the hub's export: every object has all of them."""
IFEVAL_KO = [
    {
        "key": 1000,
        "prompt": normalize("NFD", "300단어 이상으로 요약하세요. 쉼표는 쓰지 마세요."),
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [NULLS, NULLS | {"relation": "at least", "num_words": 300}],
    },
    {
        "key": 1001,
        "prompt": "'친구'와 '바다'를 넣어 편지를 쓰세요.",
        "instruction_id_list": ["keywords:existence"],
        "kwargs": [NULLS | {"keywords": ["친구", "바다"]}],
    },
]


@pytest.mark.parametrize("name", ["ifeval.jsonl", "ifeval.parquet"])
def test_the_columns_of_ifeval_ko_are_read_without_their_nulls(tmp_path, name):
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(IFEVAL_KO), tmp_path / name)
    else:
        write_jsonl(tmp_path / name, IFEVAL_KO)
    first, second = read_prompts(tmp_path, [name])
    assert (first.id, first.prompt, first.final) == ("1000", "300단어 이상으로 요약하세요. 쉼표는 쓰지 마세요.", None)
    assert json.loads(first.constraints_json()) == [
        {"id": "punctuation:no_comma", "kwargs": {}},
        {"id": "length_constraints:number_words", "kwargs": {"num_words": 300, "relation": "at least"}},
    ]
    assert second.constraints[0].kwargs == {"keywords": ["친구", "바다"]}


GOOD = {"key": "a", "prompt": "물?", "instruction_id_list": ["ko:speech_level"], "kwargs": [{"level": "해요체"}]}


def test_a_prompt_of_a_word_problem_has_its_final_number(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [GOOD | {"final": 27}, GOOD | {"key": "b", "final": "1,200.5"}])
    assert [prompt.final for prompt in read_prompts(tmp_path, ["a.jsonl"])] == ["27", "1,200.5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, r"prompt: .*\(got '  '\)"),
        ({"key": None}, "id: "),
        ({"instruction_id_list": ["ko:speech"]}, "unknown constraint; known are keywords:existence, .*'ko:speech'"),
        ({"kwargs": [{"level": "반말"}]}, "ko:speech_level takes level; level: .*합쇼체.*'반말'"),
        ({"kwargs": [{"level": "해요체", "tone": "x"}]}, "tone: unknown key"),
        ({"kwargs": [{}]}, "ko:speech_level takes level; level: missing"),
        ({"kwargs": [{"level": "해요체"}, {}]}, "a list of ids and as many kwargs"),
        ({"kwargs": []}, "a list of ids and as many kwargs"),
        ({"kwargs": ["해요체"]}, "expected objects"),
        ({"final": "세 개"}, "expected a number, such as 27"),
        (
            {"instruction_id_list": ["punctuation:no_comma"] * 10, "kwargs": [{}] * 10},
            "constraints: expected at most 9, .* not 10; drop some, or make two prompts of it",
        ),
        ({"finl": "27"}, "expected the columns .* got key, prompt, instruction_id_list, kwargs, finl"),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]}, "'ko', 'ja'"),
        (
            {
                "instruction_id_list": ["length_constraints:nth_paragraph_first_word"],
                "kwargs": [{"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "물"}],
            },
            "nth_paragraph is 2, but num_paragraphs 1",
        ),
    ],
)
def test_a_wrong_prompt_is_an_error_that_names_its_line(tmp_path, change, message):
    write_jsonl(tmp_path / "a.jsonl", [GOOD | {"key": "first"}, GOOD | change])
    with pytest.raises(UserError, match=rf"1 to correct\n  .*a\.jsonl, line 2: (?s:.*){message}"):
        read_prompts(tmp_path, ["a.jsonl"])


def test_nine_constraints_are_read(tmp_path):
    many = {"instruction_id_list": ["punctuation:no_comma"] * 9, "kwargs": [{}] * 9}
    write_jsonl(tmp_path / "a.jsonl", [GOOD | many])
    assert len(read_prompts(tmp_path, ["a.jsonl"])[0].constraints) == 9


def test_one_error_lists_the_mistakes_of_all_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [GOOD])
    (tmp_path / "b.jsonl").write_text(json.dumps(GOOD) + "\n\n{broken\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_prompts(tmp_path, ["a.jsonl", "b.jsonl"])
    assert "2 to correct" in str(error.value)
    assert "b.jsonl, line 1: key a is also that of" in str(error.value)
    assert "b.jsonl, line 3: expected a JSON object, got '{broken'" in str(error.value)


def test_a_file_that_is_missing_or_not_text_is_an_error(tmp_path):
    with pytest.raises(UserError, match=rf"missing; name a file of .*; {tmp_path} has no files"):
        read_prompts(tmp_path, ["a.jsonl"])
    for name in ("b.jsonl", "c.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match=r"neither JSON Lines in UTF-8 nor \.parquet"):
            read_prompts(tmp_path, [name])


# The bundled prompts

BUNDLED = ["constraints.jsonl", "problems.jsonl"]
ANSWERED = read_jsonl(Path(__file__).parent / "answered_prompts.jsonl")
"""For each bundled prompt with constraints, an answer that follows all of them and one that does not."""


def test_the_bundled_prompts_are_valid_and_varied():
    constrained, problems = (read_prompts(ROOT / "data/prompts", [name]) for name in BUNDLED)
    assert (len(constrained), len(problems)) == (60, 20)
    assert {one.id for prompt in constrained for one in prompt.constraints} == set(ARGUMENTS)
    assert all(1 <= len(prompt.constraints) <= 4 and not prompt.final for prompt in constrained)
    assert all(not prompt.constraints and prompt.final and "정답: 숫자" in prompt.prompt for prompt in problems)


def test_every_bundled_prompt_can_be_followed_and_a_spoiled_answer_does_not():
    prompts = {prompt.id: prompt for prompt in read_prompts(ROOT / "data/prompts", BUNDLED[:1])}
    assert [row["key"] for row in ANSWERED] == list(prompts)
    for row in ANSWERED:
        prompt = prompts[row["key"]]
        good, spoiled = (
            [one.id for one in prompt.constraints if not follows(one.id, one.kwargs, prompt.prompt, row[name])]
            for name in ("good", "spoiled")
        )
        assert (good, bool(spoiled)) == ([], True), (row, good)
