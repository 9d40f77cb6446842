"""Rows that contain an item of the benchmark are found, however short the item is, and others are not."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import decontaminate as checking
from stages import embed as embedding
from stages import fetch
from stages import merge as merging
from stages.decontaminate import Params
from stages.lib.core.artifacts import read_jsonl, read_table, write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.evaluation.contamination import Decontaminate, Similar
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.text import overlap
from stages.lib.text.overlap import REACH, Rule, containment, needed, ngrams, normalise, overlapping, without_particles
from stages.lib.text.style import without_style
from stages.merge import RAW
from stages.sample import SAMPLE
from tests.conftest import BENCHMARK
from tests.corpus import write_candidates
from tests.project import ROOT
from tools.why import why

PARAMS = read_params(Params, ROOT / "params.yaml")
SETTINGS = PARAMS.decontaminate
NO_VECTORS = {"embeddings": Path("no.parquet"), "encoder": Path("none")}
"""Not looked at unless `similar` is set."""
FEW_LETTERS = st.text("가나다", min_size=0, max_size=25)
TEXTS = st.lists(st.text("가나다", min_size=3, max_size=14), min_size=1, max_size=6)
RULES = st.builds(Rule, st.integers(1, 3), st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), st.integers(1, 8))


@given(st.lists(FEW_LETTERS, max_size=8), TEXTS, RULES)
def test_the_pairs_found_are_all_that_share_enough_ngrams(rows, texts, rule):
    expected = []
    for row, of_row in enumerate(set(ngrams(text, rule.ngram)) for text in rows):
        for text, of_text in enumerate(set(ngrams(text, rule.ngram)) for text in texts):
            if len(of_row & of_text) >= needed(np.array([len(of_text)]), rule)[0]:
                expected.append((row, text))
    assert list(overlapping(rows, texts, rule)) == expected


@given(st.lists(FEW_LETTERS, max_size=8), TEXTS, st.integers(1, 40))
def test_what_is_found_does_not_depend_on_the_chunks(rows, texts, chunk):
    rule = Rule(2, 0.6, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "CHUNK", chunk)
        in_chunks = list(overlapping(rows, texts, rule))
    assert in_chunks == list(overlapping(rows, texts, rule))


@given(FEW_LETTERS, st.text("가나다라", min_size=3, max_size=8), st.integers(1, 3))
def test_containment_is_that_of_the_best_place(row, text, n):
    of_text, width = set(ngrams(text, n)), int(REACH * len(text))
    places = [of_text & set(ngrams(row[start : start + width], n)) for start in range(max(1, len(row)))]
    assert containment(row, text, n) == max(map(len, places)) / len(of_text)


def test_ngrams_further_apart_than_one_place_do_not_add_up():
    text, gap = "가나다라마바사아자차", "하" * 6
    assert containment(f"{text[:5]}하하하하하{text[5:]}", text, 3) == 6 / 8
    assert containment(f"{text[:5]}{gap}{text[5:]}", text, 3) == 5 / 8


@given(FEW_LETTERS, st.text("가나다", min_size=3, max_size=14), FEW_LETTERS)
def test_a_text_that_is_part_of_a_row_is_contained_in_full(before, text, after):
    assert containment(before + text + after, text, 3) == 1


@pytest.mark.parametrize("written", ["ＡＢＣ 은행에\n갔다!", "abc은행에 갔다", "「ABC」 은행에… 갔_다."])
def test_spaces_punctuation_width_and_case_make_no_difference(written):
    assert normalise(written) == "abc은행에갔다"


NOUNS = st.lists(st.sampled_from(["한라산", "기온", "서울", "날씨", "병원", "2024년"]), min_size=3, max_size=5)
ENDS = st.lists(
    st.sampled_from(["", "은", "가", "의", "에서", "까지는", " ", ", ", "! ", "를 "]), min_size=5, max_size=5
)


@given(NOUNS, ENDS, ENDS)
def test_particles_spaces_and_punctuation_make_no_difference_to_near_equality_and_words_do(nouns, ends, others):
    one, other = ("".join(map("".join, zip(nouns, ending, strict=False))) for ending in (ends, others))
    assert without_particles(one) == without_particles(other)
    assert without_particles(one) != without_particles(one + "물")


@pytest.mark.parametrize(("text", "other"), [("이 가을에", "그 가을에"), ("나도", "너도"), ("?!", "..."), ("나", "가")])
def test_texts_of_little_but_particles_are_equal_only_as_they_are(text, other):
    assert without_particles(text) != without_particles(other)


@pytest.fixture
def check(tmp_path):
    """List the leaks of rows (instruction, output) against a benchmark; `settings` change those of the default."""

    def run(rows, benchmark=BENCHMARK, vectors=NO_VECTORS, **settings):
        columns = dict(zip(("instruction", "output"), zip(*rows, strict=True), strict=True))
        ids = [f"row{number}" for number in range(len(rows))]
        write_table(
            tmp_path / "raw",
            columns
            | {"id": ids, "source": ["life"] * len(rows), "turns": [None] * len(rows), "final": [None] * len(rows)},
            RAW,
        )
        params = PARAMS.model_copy(update={"decontaminate": SETTINGS.model_copy(update=settings)})
        paths = {"raw": tmp_path / "raw", "leaks": tmp_path / "leaks.parquet"} | vectors
        checking.decontaminate(params, benchmark=benchmark, **paths)
        return read_table(tmp_path / "leaks.parquet")

    return run


@pytest.fixture
def make_benchmark(new_folder):
    """Write {task: items} as the test split of a benchmark."""

    def write(tasks):
        folder = new_folder()
        for task, items in tasks.items():
            write_jsonl(folder / task / "test.jsonl", items)
        return folder

    return write


def items(task, split="test"):
    return read_jsonl(BENCHMARK / task / f"{split}.jsonl")


PROMPTS = {
    "exact": "{}",
    "first": "{} 이 글을 이어서 써 주세요.",
    "last": "다음 글이 무슨 뜻인지 알려 주세요 {}",
    "quoted": "친구가 '{}'라고 했는데 무슨 뜻인가요?",
    "line": "다음을 읽고 답하세요\n{}\n위 글은 무슨 뜻인가요",
}


@pytest.mark.parametrize("task", KOBEST)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_planted_item_is_found_anywhere_in_the_row(task, prompt, check):
    planted = [(number, item[column]) for number, item in enumerate(items(task)) for column in KOBEST[task].identifying]
    leaks = check([(PROMPTS[prompt].format(text), "답") for _, text in planted])
    kind = "exact" if prompt == "exact" else "contained"
    expected = {(f"row{row}", number, kind) for row, (number, _) in enumerate(planted)}
    found = leaks[(leaks["task"] == task) & (leaks["split"] == "test")]
    assert expected <= set(zip(found["id"], found["item"], found["kind"], strict=True))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_item_of_a_few_shot_split_is_found_by_its_number_there(split, check):
    text = items("boolq", split)[3]["paragraph"]
    assert ["boolq", split, 3] in check([("질문", text)])[["task", "split", "item"]].to_numpy().tolist()


SHORT = {"sentence": "완전 별로예요", "label": 0}


@pytest.mark.parametrize("prompt", PROMPTS.values())
def test_an_item_of_six_syllables_is_found(prompt, check, make_benchmark):
    benchmark = make_benchmark({"sentineg": [{"sentence": "참 좋은 물건을 잘 샀어요", "label": 1}, SHORT]})
    rows = [("오늘 날씨는?", "맑음"), (prompt.format("완전 별로예요."), "부정")]
    assert list(check(rows, benchmark)[["id", "item"]].itertuples(index=False, name=None)) == [("row1", 1)]


def test_six_syllables_inside_a_sentence_are_no_leak(check, make_benchmark):
    benchmark = make_benchmark({"sentineg": [SHORT]})
    outputs = ["결말이 완전 별로예요.", "완전 별로예요네.", "불완전 별로예요."]
    assert check([("이 영화 어때요?", output) for output in outputs], benchmark).empty


CHATS = [
    "완전 별로예요ㅋㅋ",
    "네ㄳ 완전 별로예요ㅠㅠ",
    "ㅎㅎ완전 별로예요",
    "완전 별로예요라는 리뷰",
    "다들 완전 별로예요 한다던데요 완전 별로예요라고 했어요",
    "잘 먹었어요 완전 별로예요 그래도 또 갈까 해요",
]


@pytest.mark.parametrize("chat", CHATS)
def test_jamo_quoting_and_missing_punctuation_hide_no_short_item(chat, check, make_benchmark):
    assert list(check([("어땠어?", chat)], make_benchmark({"sentineg": [SHORT]}))["item"]) == [0]


def test_jamo_do_not_join_the_syllable_before_them():
    assert normalise("네ㄳ 알겠어ㅇㅋ") == "네알겠어"


def test_a_near_copy_in_a_chat_without_punctuation_is_found(check, make_benchmark):
    benchmark = make_benchmark({"copa": [{"premise": "친구가 병원에 입원했다."}]})
    chat = "어제 진짜 놀랐어요 친구가 병원에 입언했다 그래서 하루 종일 걱정했어요"
    assert list(check([("왜 그래?", chat)], benchmark)["kind"]) == ["near"]


STYLES = {
    "정우는 치과에 예약을 하였다": [
        "정우가 치과 예약을 했어요",
        "정우 치과 예약했음",
        "정우는 치과에 예약을 했습니다",
        "정우랑 치과에 예약했지",
    ],
    "그는 매일 노래를 부른다": ["그는 매일 노래를 부릅니다", "그가 매일 노래를 부르네요", "그는 매일 노래를 부르니"],
    "형은 동네에서 의사다": [
        "형은 동네에서 의사예요",
        "형이 동네 의사입니다",
        "형은 동네에서 의사인가요",
        "형은 동네 의사야",
    ],
    "회의 시간이 필요하다": ["회의 시간 필요해요", "회의 시간이 필요합니까", "회의 시간이 필요해"],
    "손님에게 과자를 주었다": ["손님한테 과자를 줬어", "손님께 과자를 줬습니다"],
}


@pytest.mark.parametrize("text", STYLES)
def test_a_sentence_in_another_style_of_speech_leaves_the_same_letters(text):
    assert {without_style(style) for style in STYLES[text]} == {without_style(text)}


@given(st.permutations(list(STYLES)))
def test_different_sentences_leave_different_letters(texts):
    assert len(set(map(without_style, texts))) == len(texts)
    assert without_style("정우가 치과 예약을 안 했어요") != without_style("정우가 치과 예약을 했어요")


RESTYLED = [("예약했니?", "어제 했지. 정우가 치과 예약을 했어요ㅎㅎ"), ("날씨는?", "맑아요.")]


def test_an_item_in_another_style_of_speech_is_listed_as_restyled_and_not_dropped(check, make_benchmark):
    benchmark = make_benchmark({"copa": [{"premise": "정우는 치과에 예약을 하였다."}]})
    for settings, drop in (
        ({}, False),
        ({"drop_restyled": True}, True),
        ({"drop_restyled": True, "drop": False}, False),
    ):
        leaks = check(RESTYLED, benchmark, **settings)
        assert leaks[["id", "kind", "drop"]].to_numpy().tolist() == [["row0", "restyled", drop]]


def test_only_a_certain_leak_stops_the_stage_unless_restyled_ones_count_too(check, make_benchmark):
    benchmark = make_benchmark({"copa": [{"premise": "정우는 치과에 예약을 하였다."}]})
    assert len(check(RESTYLED, benchmark, fail=True)) == 1
    with pytest.raises(UserError, match=r"row0 contains copa test 0 \(restyled\)"):
        check(RESTYLED, benchmark, fail=True, drop_restyled=True)


def test_a_sentence_that_is_mostly_particles_is_never_restyled(check, make_benchmark):
    assert check([("눈?", "눈이 건조해요.")], make_benchmark({"copa": [{"premise": "눈은 건조하다."}]})).empty


@pytest.mark.parametrize(
    ("passage", "letters"), [("왕이 도읍을 남쪽으로 옮겼다", 12), ("왕이 도읍을 남쪽에 옮겼다", 11)]
)
def test_twelve_letters_identify_an_item_of_another_task_and_eleven_do_not(passage, letters, check, make_benchmark):
    assert len(normalise(passage)) == letters
    benchmark = make_benchmark({"history": [{"passage": passage, "answer": "기록된 바가 전혀 없다"}]})
    assert list(check([("옛날", f"그때 {passage}고 한다.")], benchmark)["kind"]) == ["contained"] * (letters == 12)


def test_a_near_copy_is_found_with_the_share_of_its_ngrams(check):
    contexts = [item["context"] for item in items("hellaswag")]
    number, context = next((n, text) for n, text in enumerate(contexts) if "옷매무새" in text)
    copy = context.replace("옷매무새를 가다듬는다", "옷차림을 가다듬었다").replace("면접관들에게", "면접관에게")
    leaks = check([(f"이야기를 완성하세요. {copy}", "끝")])
    assert leaks[["task", "item", "kind", "item_text"]].to_numpy().tolist() == [["hellaswag", number, "near", context]]
    assert SETTINGS.share <= leaks["share"][0] < 1


@pytest.mark.parametrize("task", KOBEST)
def test_an_item_with_one_syllable_in_ten_changed_is_found(task, check):
    texts = [" ".join(value for value in item.values() if isinstance(value, str)) for item in items(task)]
    plain = [normalise(text) for text in texts]
    changed = ["".join("뷁" if place % 10 == 9 else letter for place, letter in enumerate(text)) for text in plain]
    leaks = check([(text, "답") for text in changed])
    found = set(leaks.loc[leaks["task"] == task, "item"])
    assert {number for number, text in enumerate(plain) if len(text) >= 14} <= found


@pytest.mark.parametrize(("copy", "found"), [("친구가 병원에 입언했다", True), ("그 친구가 병원에서 퇴원했다", False)])
def test_a_near_copy_of_a_short_item_is_found_if_a_sentence_is_similar_to_it(copy, found, check, make_benchmark):
    benchmark = make_benchmark({"copa": [{"premise": "친구가 병원에 입원했다."}]})
    leaks = check(
        [("무슨 일이야?", f"어제 일이다. {copy}! 걱정이다."), ("일기", f"나는 어제 {copy} 그래서")], benchmark
    )
    assert list(leaks["id"]) == ["row0"] * found


@pytest.mark.parametrize("text", ["비가 와서, 집에 있었다.", "비가 와서 [집]에 있었다.", "[비]가 와서 집에 있었다."])
@pytest.mark.parametrize(
    "copy", ["비가 와서, 집에 잇었다", "비가 와서 [집]에 잇었다", "비가 와서 집에 잇었다", "비가... 와서 집에 잇었다"]
)
def test_punctuation_inside_a_short_item_or_its_near_copy_hides_nothing(text, copy, check, make_benchmark):
    benchmark = make_benchmark({"wic": [{"context_1": text}]})
    rows = [
        (copy, "답"),
        ("무슨 뜻일까?", f"'{copy}!' 하고 말했다."),
        ("일기", "비가 와서, 참 좋은 날에, 집에 잇었다."),
    ]
    assert list(check(rows, benchmark)["id"]) == ["row0", "row1"]


def test_a_sentence_that_is_similar_to_a_text_of_six_syllables_is_no_leak(check, make_benchmark):
    assert check([("별로예요?", "완전 별로네요.")], make_benchmark({"sentineg": [SHORT]})).empty


def test_ngrams_scattered_over_a_long_row_are_no_near_copy(check):
    words = items("hellaswag")[0]["context"].split()
    filler = "그 밖의 일은 여기에 적지 않고 다음 장에서 차례로 다루기로 한다. "
    assert check([("소설을 써 줘", filler.join(f"{word} " for word in words))]).empty


def test_a_field_that_does_not_identify_an_item_is_no_leak(check):
    copa, wic, hellaswag = items("copa")[0], items("wic")[0], items("hellaswag")[0]
    fields = [copa["question"], copa["alternative_1"], wic["word"], hellaswag["ending_1"], "1", "원인 결과"]
    assert check([(field, field) for field in fields]).empty


def test_all_fields_together_identify_even_a_short_item(check, make_benchmark):
    item = {
        "premise": "비가 왔다",
        "question": "결과",
        "alternative_1": "우산을 폈다.",
        "alternative_2": "창을 닦았다.",
    }
    benchmark = make_benchmark({"copa": [item | {"label": 0}]})
    assert check([("비가 왔다", "우산을 폈다.")], benchmark).empty
    assert list(check([("비가 왔다. 결과: 우산을 폈다. 또는 창을 닦았다.", "0")], benchmark)["kind"]) == ["near"]


def test_any_long_text_of_an_unknown_task_identifies_an_item_unless_many_share_it(check, make_benchmark):
    ask = "다음 글을 읽고 물음에 가장 알맞은 답을 고르시오"
    unknown = [
        {
            "query": f"{ask}",
            "passage": f"{n}번째 왕이 도읍을 옮긴 해의 기록은 남아 있지 않다",
            "answer": "가을에 옮겼다",
        }
        for n in range(6)
    ]
    rows = [(ask, "네"), ("3번째 왕이 도읍을 옮긴 해의 기록은 남아 있지 않다.", "네"), ("가을에 옮겼다", "네")]
    leaks = check(rows, make_benchmark({"history": unknown}))
    assert set(leaks["id"]) == {"row1"}
    assert leaks.loc[leaks["kind"] == "exact", "item"].tolist() == [3]


def test_an_item_is_listed_once_for_a_row_by_its_strongest_kind(check, make_benchmark):
    item = {"word": "풀", "context_1": "소들이 들판에서 [풀]을 뜯고 있다.", "context_2": "가위와 [풀]을 준비했다."}
    both, one = f"{item['context_1']} {item['context_2']}", item["context_2"]
    leaks = check([(both, "네"), (both, one)], make_benchmark({"wic": [item]}))
    assert leaks[["id", "kind", "item_text"]].to_numpy().tolist() == [
        ["row0", "contained", item["context_1"]],
        ["row1", "exact", one],
    ]


def test_a_paragraph_of_many_questions_leaks_them_all(check, make_benchmark):
    paragraph = "소백산 기슭의 작은 마을에는 오래된 은행나무가 한 그루 있다."
    benchmark = make_benchmark(
        {"boolq": [{"paragraph": paragraph, "question": f"나무는 {n}살인가?"} for n in range(9)]}
    )
    assert list(check([(paragraph, "답")], benchmark)["item"]) == list(range(9))


def test_a_benchmark_whose_texts_are_all_too_short_has_no_leaks(check, make_benchmark):
    assert check([("좋다", "좋다")], make_benchmark({"sentineg": [{"sentence": "좋다", "label": 1}]})).empty


def test_the_table_has_whether_the_row_is_dropped(check):
    rows = [(items("copa")[0]["premise"], "답")]
    for drop in (True, False):
        assert set(check(rows, drop=drop)["drop"]) == {drop}


def test_fail_lists_the_first_leaks_and_keeps_the_table(check, tmp_path):
    premises = [item["premise"] for item in items("copa")]
    listed = check([(premise, "답") for premise in premises[:5]])
    with pytest.raises(UserError, match=r"5 rows contain an item") as error:
        check([(premise, "답") for premise in premises[:5]], fail=True)
    assert f"row0 contains copa test 0 (exact): {premises[0]}" in str(error.value)
    assert f"and {len(listed) - 3} more in" in str(error.value)
    assert read_table(tmp_path / "leaks.parquet").equals(listed)


def test_fail_does_not_stop_if_there_is_no_leak(check):
    assert check([("오늘 날씨는 어때요?", "맑고 따뜻합니다.")], fail=True).empty


@pytest.fixture
def embedded(encoder, write_raw, new_folder):
    """Embed texts as instructions of rows, by the stage; return the file."""

    def run_stage(texts):
        path = new_folder() / "embeddings.parquet"
        params = embedding.Params(threads=PARAMS.threads, embed=PARAMS.embed)
        files = {"encoder": encoder, "checkpoints": path.parent / "checkpoints", "embeddings": path}
        embedding.embed(params, raw=write_raw(texts), **files)
        return path

    return run_stage


def vectors_in(path):
    return np.stack(read_table(path)["vector"])


def test_every_item_that_is_close_in_meaning_is_listed_and_not_only_the_closest(
    check, make_benchmark, embedded, encoder, questions
):
    premises = [f"{question} 하고 물었다." for question in questions[::4]]
    benchmark = make_benchmark({"copa": [{"premise": premise} for premise in premises]})
    instructions, files = questions[1::4], {"encoder": encoder}
    files["embeddings"] = embedded(instructions)
    cosines = vectors_in(files["embeddings"]).astype(float) @ vectors_in(embedded(premises)).astype(float).T
    least = float(np.sort(cosines.ravel())[-30])  # so that 30 of the 100 pairs are close
    rows = [(text, "답") for text in instructions]
    leaks = check(rows, benchmark, files, similar=Similar(listed_from=least - 1e-9, drop=False))
    expected = {(f"row{row}", item) for row, item in np.argwhere(cosines >= least - 1e-9).tolist()}
    leaks = leaks[leaks["kind"] == "similar"].reset_index()
    others = check(rows, benchmark)  # listed with a stronger kind
    assert set(zip(leaks["id"], leaks["item"], strict=True)) == expected - set(
        zip(others["id"], others["item"], strict=True)
    )
    assert 20 < len(leaks) <= 30
    assert leaks["id"].nunique() <= 10
    shares = [cosines[int(row.id[3:]), row.item] for row in leaks.itertuples()]
    assert list(leaks["share"]) == pytest.approx(shares, abs=1e-9)
    assert leaks["text"][0].endswith("\n\n답")


def test_a_row_that_is_only_close_in_meaning_drops_and_fails_only_if_it_should(
    check, make_benchmark, embedded, encoder, questions
):
    copied, close = "정우는 치과에 예약을 하였다.", "날씨가 매우 맑고 따뜻하다."
    benchmark = make_benchmark({"copa": [{"premise": copied}, {"premise": f"{close} 그래서 산책했다."}]})
    files = {"encoder": encoder, "embeddings": embedded([copied, close])}
    rows, everything = [(copied, "답"), (close, "답")], Similar(listed_from=1e-6, drop=False)
    leaks = check(rows, benchmark, files, similar=everything)
    assert leaks[["id", "item", "kind", "drop"]].to_numpy().tolist() == [
        ["row0", 0, "exact", True],
        ["row0", 1, "similar", False],
        ["row1", 0, "similar", False],
        ["row1", 1, "similar", False],
    ]
    with pytest.raises(UserError, match="1 rows contain an item"):
        check(rows, benchmark, files, similar=everything, fail=True)
    assert check(rows, benchmark, files, similar=everything.model_copy(update={"drop": True}))["drop"].all()


def test_without_similar_neither_the_vectors_nor_torch_is_needed(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert check([("오늘 날씨는 어때요?", "맑고 따뜻합니다.")], similar=None).empty
    loaded = "import sys, stages.decontaminate; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=True)


def test_a_benchmark_without_items_stops(check, new_folder):
    with pytest.raises(UserError, match=r"no items in <task>/<split>.jsonl"):
        check([("질문", "답")], new_folder())


def test_an_ngram_longer_than_the_shortest_text_is_refused():
    with pytest.raises(ValueError, match=r"ngram \(6\) is longer than min_characters \(5\)"):
        Decontaminate.model_validate(SETTINGS.model_dump() | {"ngram": 6})


def test_the_bundled_rows_contain_no_item_of_the_bundled_benchmark(tmp_path):
    recipe = ROOT / "params.yaml"
    sources, raw, leaks = (tmp_path / name for name in ("sources", "raw", "leaks"))
    outs = {name: tmp_path / name for name in ("held_out", "dropped")}
    fetch.fetch(read_params(fetch.Params, recipe), inputs=ROOT / "data/inputs", sources=sources)
    merging.merge(read_params(merging.Params, recipe), sources=sources, raw=raw, **outs)
    checking.decontaminate(read_params(Params, recipe), raw=raw, benchmark=BENCHMARK, leaks=leaks, **NO_VECTORS)
    assert len(read_table(raw)) > 800
    assert read_table(leaks).empty


def test_why_names_the_item_that_a_row_contains(tmp_path, monkeypatch, write_leaks, write_raw):
    (tmp_path / "params.yaml").write_text(json.dumps({"arms": {"ours": {"method": "random"}}}))
    data = SimpleNamespace(
        raw=write_raw(["질문 하나", "질문 둘"]), leaks=write_leaks(("row1", "copa", "test", 7, "near", True))
    )
    folder = tmp_path / "data"
    folder.mkdir()
    for name, path in vars(data).items():
        path.rename(folder / f"{name}.parquet")
    write_table(folder / "dropped.parquet", pd.DataFrame(columns=merging.DROPPED.names), merging.DROPPED)
    for name in ("held_out", "reviews"):
        write_jsonl(folder / f"{name}.jsonl", [])
    ids, cells = ["row0", "row1"], {"length_group": [0, 2], "cluster": [1, 3]}
    write_candidates(folder / "candidates.parquet", id=ids, tokens=[4, 5], ppl=[None, 7.25], **cells)
    rows = pd.DataFrame({"id": ids, "reason": ["selected", "leaked"], "selected": [True, False]})
    write_table(folder / "samples/ours.parquet", rows.reindex(columns=SAMPLE.names), SAMPLE)
    monkeypatch.chdir(tmp_path)
    (leaked,) = why("row1", folder)
    assert "leak (near): copa test 7, 문항" in leaked
    assert "cell 2.3, tokens 5, ppl 7.25" in leaked
    assert "ours: out (leaked" in leaked
    (clean,) = why("row0", folder)
    assert "leak" not in clean
