"""`python -m tools.answers` shows every model's answer to a prompt, with a mark for each constraint."""

import json

import pytest

from stages.generate import ANSWERS
from stages.lib.core.artifacts import write_table
from stages.lib.core.errors import UserError
from tools.answers import answer_lines

CONSTRAINTS = [{"id": "punctuation:no_comma", "kwargs": {}}, {"id": "ko:hangul_only", "kwargs": {}}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with two arms and a preference, and an empty folder of answers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("arms: {ours: {}, random: {}}\nprefer: {polite: {}}\n")
    return tmp_path


@pytest.fixture
def write_answers(folder):
    """Write a model's answers to three prompts: two with constraints, the last with a final number."""

    def write(name, *answers, ids=("one", "two", "sum")):
        rows = {
            "id": list(ids),
            "prompt": ["쉼표 없이\n한글로만 쓰세요.", "한글로만 쓰세요.", "3 더하기 4는?"][: len(ids)],
            "constraints": [json.dumps(CONSTRAINTS[start:]) for start in (0, 1, 2)][: len(ids)],
            "final": [None, None, "7"][: len(ids)],
            "answer": list(answers),
            "tokens": [len(answer) for answer in answers],
            "ended": [len(answer) < 8 for answer in answers],
        }
        write_table(folder / f"data/answers/{name}.parquet", rows, ANSWERS)

    return write


@pytest.fixture
def answered(write_answers):
    write_answers("base", "", "", "")
    write_answers("ours", "좋은 아침", "네", "정답: 7")
    write_answers("random", "아침, 저녁", "네 ok", "정답: 8")
    write_answers("polite", "좋은 아침입니다", "그럼요", "일곱")


def test_each_answer_stands_under_its_model_with_its_marks(answered):
    text = "\n".join(answer_lines("one"))
    assert [block.split(":")[0] for block in text.split("\n\n")] == ["one", "base", "ours", "random", "polite"]
    _, base, ours, random, polite = text.split("\n\n")
    assert ours.splitlines()[1:] == ["  + punctuation:no_comma", "  + ko:hangul_only", "  > 좋은 아침"]
    assert random.splitlines()[1:3] == ["  - punctuation:no_comma", "  + ko:hangul_only"]
    assert base.splitlines()[1:] == ["  - punctuation:no_comma", "  - ko:hangul_only", "  > (empty)"]
    assert "8 tokens, cut" in polite


def test_a_final_number_is_marked_and_shown_beside_the_right_one(answered):
    text = "\n".join(answer_lines("sum"))
    for expected in (
        "+ final number: 7; right is 7",
        "- final number: 8; right is 7",
        "- final number: none; right is 7",
    ):
        assert expected in text


def test_the_list_counts_the_models_that_satisfy_everything(answered):
    title, *rows = answer_lines(None)
    assert "3 prompts, each with how many of 4 models" in title
    assert [row.split()[:2] for row in rows] == [["one", "2"], ["two", "2"], ["sum", "1"]]
    assert "쉼표 없이 한글로만" in rows[0]


def test_an_unknown_prompt_says_where_the_ids_are(answered):
    with pytest.raises(UserError, match=r"no prompt has the id three; `python -m tools\.answers` lists them"):
        list(answer_lines("three"))


def test_missing_answers_say_how_to_get_them(write_answers):
    write_answers("base", "", "", "")
    with pytest.raises(UserError, match=r"data/answers/ours\.parquet, .*polite\.parquet: missing; run `dvc repro`, or"):
        list(answer_lines(None))


def test_answers_to_other_prompts_are_an_error(answered, write_answers):
    write_answers("random", "가", "나", ids=("one", "two"))
    with pytest.raises(UserError, match=r"random\.parquet: other prompts than in .*base\.parquet; run `dvc repro`"):
        list(answer_lines(None))


def test_empty_tables_say_that_no_prompts_are_named(write_answers):
    for name in ("base", "ours", "random", "polite"):
        write_answers(name, ids=())
    with pytest.raises(UserError, match=r"generate\.files names no prompts"):
        list(answer_lines(None))
