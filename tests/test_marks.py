"""A reply is read as a mark from 0 to 10, or as the reason why it is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.rating.marks import CUT, ERROR, KINDS, OK, OUT_OF_RANGE, REFUSED, UNPARSED, mark_of

MARKS = {
    # only a number, with markdown, full-width
    "8.5": 8.5,
    "8": 8,
    "0": 0,
    "10": 10,
    "10.0": 10,
    "  7\n": 7,
    "8.": 8,
    "\n\n9\n좋은 답변입니다.": 9,
    "8.5\n정확성 10점, 유용성 7점": 8.5,
    "**8**": 8,
    "`8.5`": 8.5,
    "## 8": 8,
    "> 6": 6,
    "- 6": 6,
    "[8]": 8,
    "(8)": 8,
    "---\n8\n---": 8,
    "８．５": 8.5,
    "８점": 8,
    "１０／１０": 10,
    "⑧": 8,
    "8 (오류 2개)": 8,
    "8 - 좋은 답변": 8,
    "8: 정확하고 유용합니다": 8,
    "8, 정확하고 유용합니다": 8,
    # Korean
    "8.5점": 8.5,
    "8.5 점": 8.5,
    "점수: 8": 8,
    "점수 : 8.5점": 8.5,
    "점수：８": 8,
    "점수8": 8,
    "점수:\n8.5": 8.5,
    "**점수:** 8/10": 8,
    "1. 점수: 8": 8,
    "점수(10점 만점): 8": 8,
    "점수 (0~10): 9": 9,
    "| 점수 | 8 |": 8,
    "평점은 8점입니다": 8,
    "평점: 7.5/10점": 7.5,
    "10점 만점에 8점": 8,
    "10점 만점에 10점입니다.": 10,
    "0~10점 척도에서 6점": 6,
    "8점/10점": 8,
    "이 응답에는 오류가 2개 있어 6점을 드립니다.": 6,
    "총점 9점 (10점 만점)": 9,
    # English
    "8/10": 8,
    "8 / 10": 8,
    "8.5/10.0": 8.5,
    "Score: 8.5": 8.5,
    "score:8": 8,
    "**Score**: 8": 8,
    "Score = 8": 8,
    "Score - 8": 8,
    "The score is 7.": 7,
    "Score (out of 10): 8": 8,
    "Rating: [[8]]": 8,
    "9 out of 10": 9,
    "8 points": 8,
    "I would rate this response a 7.": 7,
    "I'd give it 7/10 because it has 3 errors.": 7,
    "<think>\n정확성은 3점?\n</think>\n\n8.5": 8.5,
    '{"score": 8}': 8,
}
NO_MARKS = [
    "",
    "\n \n",
    "좋은 답변입니다.",
    "여덟 점",
    "nan",
    "inf",
    "8~9",
    "8～9점",
    "8-9",
    "8 to 9",
    "8에서 9점",
    "8 9",
    "8, 9",
    "8,5",
    "1e1",
    "4/5",
    "80/100",
    "85%",
    "8/100",
    "8점대",
    "정확성: 8점, 유용성: 9점",
    "3 errors were found.",
    "이 응답에는 오류가 3개 있습니다.",
    "1. 정확성",
    "1) 정확성",
    "2023-12-13",
    "½",
    "GPT-4",
    "8.5.1",
    "점수:",
    "점수: 없음\n8",
]
"""Among them are the two marks that a judge gives two answers, and numbers that count something else."""


@pytest.mark.parametrize(("reply", "score"), MARKS.items())
def test_a_mark_is_read_in_whatever_form_a_judge_writes_it(reply, score):
    assert mark_of(reply, "stop", None) == (score, OK)


@pytest.mark.parametrize("reply", NO_MARKS)
def test_a_line_that_gives_no_single_mark_out_of_ten_gives_none(reply):
    assert mark_of(reply, "stop", None) == (None, UNPARSED)


@pytest.mark.parametrize("reply", ["85", "-1", "10.5", "점수: 100", "-1점", "11/10", "9" * 400])
def test_a_number_outside_the_scale_is_no_mark(reply):
    assert mark_of(reply, "stop", None) == (None, OUT_OF_RANGE)


def test_a_reply_that_is_none_says_why():
    assert mark_of(None, "content_filter", None) == (None, REFUSED)
    assert mark_of(None, "stop", None) == (None, REFUSED)
    assert mark_of("8", "content_filter", None) == (None, REFUSED)
    assert mark_of(None, None, "400: too long") == (None, ERROR)


def test_a_reply_that_was_cut_before_its_number_ended_gives_none():
    assert mark_of("이 응답은 정확하고", "length", None) == (None, CUT)
    assert mark_of("8", "length", None) == (None, CUT)  # the beginning of 8.5?
    assert mark_of("8\n정확하고", "length", None) == (8, OK)
    assert mark_of("8점. 정확하고", "length", None) == (8, OK)


PIECES = st.sampled_from(
    [*"0123456789.,/~-:점수 \n*()|", "점수", "score", " out of 10", "10점 만점", "\u2028", "８", "nan"]
)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)), st.sampled_from(["stop", "length", "content_filter", None]))
def test_no_text_crashes_it_or_gives_a_mark_outside_the_scale(reply, finish_reason):
    score, kind = mark_of(reply, finish_reason, None)
    assert kind in KINDS
    assert (score is not None and 0 <= score <= 10) == (kind == OK)
