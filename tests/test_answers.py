"""Marks and scores of generated answers, and the floors beside them."""

import json

import numpy as np
import pandas as pd
import pytest

from stages.lib.evaluation.answers import answer_scores, final_answer, floors, mark_answers, reaches
from stages.lib.evaluation.prompts import read_prompts
from tests.project import ROOT


def answered(*rows):
    """Return a table of answers from (constraints, final, answer)."""
    columns = {
        "id": [str(number) for number in range(len(rows))],
        "prompt": ["물?"] * len(rows),
        "constraints": [json.dumps([{"id": name, "kwargs": kwargs} for name, kwargs in row[0]]) for row in rows],
        "final": [row[1] for row in rows],
        "answer": [row[2] for row in rows],
    }
    return pd.DataFrame(columns)


POLITE_ONLY = [("ko:speech_level", {"level": "해요체"})]
POLITE_AND_SHORT = [*POLITE_ONLY, ("length_constraints:number_sentences", {"num_sentences": 1, "relation": "exactly"})]


def test_marks_count_the_followed_constraints_and_right_finals():
    marks = mark_answers(
        answered(
            (POLITE_AND_SHORT, None, "물이에요."),
            (POLITE_AND_SHORT, None, "물입니다."),
            ([], "1,200", "값은 1200원\n정답: 1200원"),
            ([], "12", "12"),
        )
    )
    assert marks["followed"].tolist() == [2, 1, 0, 0]
    assert marks["constraints"].tolist() == [2, 2, 0, 0]
    assert np.array_equal(marks["final"], [np.nan, np.nan, 1, 0], equal_nan=True)
    assert answer_scores(marks) == {"prompts": 4, "prompt_level": 0.5, "instruction_level": 0.75, "final": 0.5}


def test_a_score_that_no_prompt_counts_for_is_missing():
    assert set(answer_scores(mark_answers(answered((POLITE_ONLY, None, "네."))))) == {
        "prompts", "prompt_level", "instruction_level",
    }  # fmt: skip
    assert set(answer_scores(mark_answers(answered(([], "3", "정답: 3"))))) == {"prompts", "final"}
    assert answer_scores(mark_answers(answered())) == {"prompts": 0}


@pytest.mark.parametrize(
    ("answer", "right", "outcome"),
    [
        ("정답: 1,234", "1234", True),
        ("정답: 1234.0개", "1,234", True),
        ("정답: １２３４", "1234", True),
        ("6 + 6 = 12\n**정답: 12개입니다.**", "12", True),
        ("정답 : -3.50", "-3.5", True),
        ("정답: 12\n정답: 13", "13", False),
        ("정답: 3, 4", "34", False),
        ("정답: 12와 13", "12", False),
        ("그래서 12입니다.", "12", False),
        ("정답:", "0", False),
        ("정답은 모릅니다.", "12", False),
        ("정답: **12**입니다", "12", True),
        ("**정답:** `12`", "12", True),
        ("정답: 3*4", "34", False),
        ("정답: 3 * 4", "3", False),
        ("정답: −5", "-5", True),
        ("정답: −5", "5", False),
        (r"정답: \boxed{12}", "12", True),
        (r"정답: $\boxed{1,200}$", "1200", True),
        ("정답: 5 + 7 = 12", "12", True),
        ("정답: 5 + 7 = 12", "5", False),
        ("정답: x >= 12", "12", False),
        ("정답: 12개입니다. 5 + 7은 12이기 때문입니다.", "12", True),
        ("정답: 63㎡", "63", True),
        ("정답: 25℃", "25", True),
        ("정답: 1e3", "1", False),
    ],
)
def test_a_final_number_counts_only_after_its_header_and_however_it_is_written(answer, right, outcome):
    assert reaches(answer, right) == outcome


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("12만원", "120000"),
        ("12만 원입니다", "120000"),
        ("3천", "3000"),
        ("3.5억 명", "350000000"),
        ("2백", "200"),
        ("5천만", "50000000"),
        ("1조", "1000000000000"),
        ("4조각", "4"),
        ("3천 조각", "3000"),
    ],
)
def test_a_number_before_a_scale_is_multiplied_and_never_read_without_it(written, number):
    assert final_answer(f"정답: {written}") == number


def test_two_numbers_with_scales_are_no_number():
    assert not reaches("정답: 1만 2천 원", "12000")
    assert not reaches("정답: 1만 2천 원", "10000")


def test_a_long_row_of_scales_stops_nothing():
    assert final_answer("정답: 1" + "조" * 1000) == "1" + "0" * 48


ASKED = "5상자에는 몇 개 있습니까? 마지막 줄에 '정답: 숫자' 형식으로 답을 쓰세요."


@pytest.mark.parametrize(
    ("answer", "right", "outcome"),
    [
        (f"{ASKED}\n12 x 5 = 60\n정답: 60", "60", True),
        (f"{ASKED} 12 x 5 = 60. 정답: 60", "60", True),
        ("정답: 모르겠지만 세어 봅시다.\n정답: 60", "60", True),
        (f"{ASKED}\n정답: 50\n정답: 60", "60", False),
        (f"{ASKED}\n12 x 5 = 60", "60", False),
        (f"{ASKED}\n정답: 서울", "서울", False),
        ("정답: 서울\n정답: 3", "서울", True),
        ("정답: 3\n정답: 서울", "서울", False),
        ("정답: 비가 온다. 눈도 온다.", "비가 온다.", False),
        ("서울", "서울", False),
    ],
)
def test_the_first_header_with_a_number_counts_for_a_number_and_the_first_for_a_text(answer, right, outcome):
    assert reaches(answer, right) == outcome


def test_thoughtless_answers_to_the_bundled_prompts_score_low():
    prompts = read_prompts(ROOT / "data/prompts", ["constraints.jsonl", "problems.jsonl"])
    rows = [
        {"id": one.id, "prompt": one.prompt, "constraints": one.constraints_json(), "final": one.final, "answer": ""}
        for one in prompts
    ]
    found = floors(pd.DataFrame(rows))
    print(found)
    assert set(found) == {"empty", "echo", "polite"}
    for scores in found.values():
        assert scores["prompt_level"] <= 0.05
        assert scores["instruction_level"] <= 0.4
        assert scores["final"] == 0.0
        assert scores["prompts"] == 80
    assert found["empty"]["instruction_level"] == 0.0
    page = (ROOT / "docs/answers.md").read_text(encoding="utf-8")
    for name in ("echo", "polite"):
        assert f"| {name} | 0 | {found[name]['instruction_level']:.2f} | 0 |" in page
