"""A final answer is right if it equals the row's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.core.artifacts import write_jsonl
from stages.lib.core.errors import UserError
from stages.lib.evaluation.answers import final_answer
from tools import final_answers
from tools.final_answers import compared


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("9*3\n정답: 27", "27"),
        ("정답: 27", "27"),
        ("정답 : 1,200.50", "1200.5"),
        ("정답: 27.", "27"),
        ("정답: -3", "-3"),
        ("정답：6.930\n정답: 7", "6.93"),
        ("정답: 12개입니다.", "12"),
        ("**정답: ３**", "3"),
        ("정답: 3월", "3"),
        ("정답: 3, 4", "3, 4"),
        ("정답: 1시간 30분", "1시간30분"),
        ("정답: 서울", "서울"),
        ("정답: ", ""),
        ("답은 27", None),
        ("", None),
    ],
)
def test_the_final_answer_is_what_follows_its_header(text, answer):
    assert final_answer(text) == answer


@given(st.text())
def test_no_text_stops_the_reading_of_final_answers(text):
    final_answer(f"정답: {text}")


def test_an_arm_with_runs_is_compared_with_the_control_over_runs_and_items():
    rng = np.random.default_rng(1)
    runs = {"cot": rng.random((3, 400)) < 0.6, "answer_only": rng.random((3, 400)) < 0.2, "single": np.ones((1, 400))}
    runs = {name: values.astype(float) for name, values in runs.items()}
    cot, control, single = compared("answer_only", runs)
    estimate, lo, hi = (float(part.strip("[],")) for part in cot.split("minus answer_only: ")[1].split())
    assert lo < 0.4 < hi
    assert estimate == pytest.approx(runs["cot"].mean() - runs["answer_only"].mean(), abs=1e-4)
    assert "minus" not in control + single


def test_rows_without_a_final_answer_are_an_error_that_says_where_to_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr(final_answers, "HELD_OUT", tmp_path / "held_out.jsonl")
    write_jsonl(tmp_path / "held_out.jsonl", [{"instruction": "왜?", "output": "그냥."}])
    with pytest.raises(UserError, match="name its field as `final`"):
        final_answers.questions()
