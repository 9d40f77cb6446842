"""Two arms' answers are compared as AlpaGasus does, by a judge who is paid once and whose marks are not guessed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.core.artifacts import write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.statistics.comparison import Resampling
from tests.judges import LEDGER, prepare_asking, serving
from tests.project import change_params
from tests.test_ask import asked, marks, write_rows
from tools import judge
from tools.judge import PROMPT, PairPrompt
from tools.pairwise import conclusion, tally, two_marks_of

SETTINGS = Resampling(resamples=200, randomisations=20, seed=1)
ANSWERS = pa.schema([(name, pa.string()) for name in ("id", "prompt", "answer")])

TWO_MARKS = {
    "8 7": (8, 7),
    "8.5 7": (8.5, 7),
    "10 1": (10, 1),
    "8, 7": (8, 7),
    "8; 7": (8, 7),
    "\n  8 7  \n답변 1이 더 낫습니다. 10점 만점에 8점": (8, 7),
    "8점 7점": (8, 7),
    "8점, 7점": (8, 7),
    "8점과 7점입니다.": (8, 7),
    "8 points and 7 points": (8, 7),
    "8/10 7/10": (8, 7),
    "8/10, 7/10점": (8, 7),
    "점수: 8 7": (8, 7),
    "**점수:** 8, 7": (8, 7),
    "점수:\n8 7": (8, 7),
    "Scores: 8 7": (8, 7),
    "답변 1: 8, 답변 2: 7": (8, 7),
    "답변1: 8점 / 답변2: 7점": (8, 7),
    "답변 1은 8점, 답변 2는 7점입니다.": (8, 7),
    "**답변 1**: 8/10\n**답변 2**: 7/10\n이유": (8, 7),
    "Assistant 1: 8, Assistant 2: 7": (8, 7),
    "８　７": (8, 7),
    "８점，　７점": (8, 7),
    "**8 7**": (8, 7),
    "**8** **7**": (8, 7),
    "`8 7`": (8, 7),
    "## 8 7": (8, 7),
    "- 8 7": (8, 7),
    "[8, 7]": (8, 7),
    "| 8 | 7 |": (8, 7),
    "<think>\n5 6\n</think>\n8 7": (8, 7),
}
NOT_TWO = [
    "", "8", "8/10", "점수: 8/10", "8~7", "8-7", "8 - 7", "8:7", "8/7", "8,7", "8 7 6", "8 7 (오류 2개)", "8\n7",
    "8/10 7", "#1 8\n#2 7", "[1] 8\n[2] 7", "1. 8\n2. 7", "8 > 7", "1_0 7", "답변 2: 7, 답변 1: 8", "답변 1: 8",
    "답변 1 8 7", "좋은 답변입니다.\n8 7", "80% 70%", "-8 7", "여덟 일곱",
]  # fmt: skip
MARK = st.integers(2, 20).map(lambda half: half / 2)
FORMS = [
    "{} {}",
    "{}, {}",
    "{}점 {}점",
    "{}점, {}점\n설명 3",
    "{}/10 {}/10",
    "답변 1: {}, 답변 2: {}",
    "**{} {}**",
    "점수: {} {}",
]


@pytest.mark.parametrize("reply", TWO_MARKS)
def test_both_marks_are_read(reply):
    assert two_marks_of(reply, "stop", None) == (*TWO_MARKS[reply], "ok")


@pytest.mark.parametrize("reply", NOT_TWO)
def test_what_may_mean_something_else_gives_no_marks(reply):
    assert two_marks_of(reply, "stop", None) == (None, None, "unparsed")


def test_why_a_reply_has_no_marks_is_kept():
    found = [
        two_marks_of(*reply).kind
        for reply in [
            ("11 5", "stop", None), ("0 5", "stop", None), ("8 1", "length", None), ("8", "length", None),
            ("8 1\n설명", "length", None), (None, "stop", None), ("8 7", "content_filter", None), (None, None, "400"),
        ]
    ]  # fmt: skip
    assert found == ["out_of_range", "out_of_range", "cut", "cut", "ok", "refused", "refused", "error"]


@given(MARK, MARK, st.sampled_from(FORMS))
def test_any_two_marks_are_read_in_every_form(first, second, form):
    assert two_marks_of(form.format(f"{first:g}", f"{second:g}"), "stop", None) == (first, second, "ok")


@given(st.text(alphabet="0123456789 .,/~-:점답변12\n*#[]|", max_size=14))
def test_marks_that_are_read_are_the_only_numbers_of_what_was_read(reply):
    first, second, kind = two_marks_of(reply, "stop", None)
    if kind == "ok":
        unlabelled = re.sub(r"답변 ?[12] ?:", " ", reply.replace("/10", " "))
        numbers = [float(number) for number in re.findall(r"[0-9]+(?:\.[0-9]+)?", unlabelled.strip().split("\n")[0])]
        assert numbers in ([first, second], [first])  # the second may stand on a line of its own, with its label
        assert len(numbers) == 2 or "답변" in reply


def tallied(straight, swapped):
    """Return the tally of verdicts [A, B, N] that were all asked."""
    straight, swapped = np.array(straight, float), np.array(swapped, float)
    return tally(straight, swapped, np.ones(straight.shape, bool), SETTINGS)


def test_a_verdict_is_what_both_orders_say_or_one_with_a_tie():
    found = tallied([[[1, 1, 1, 0, 0, 0, -1, -1, -1]]], [[[1, 0, -1, 1, 0, -1, 1, 0, -1]]])
    assert (found.wins, found.losses, found.ties) == (3, 3, 3)
    assert (found.decided, found.flips) == (4, 0.5)
    assert found.score["est"] == 1


def test_a_prompt_without_marks_in_one_run_is_left_out_and_counted():
    found = tallied([[[1, 1, 1]], [[1, 1, np.nan]]], [[[1, 1, 1]], [[1, 1, 1]]])
    assert (found.wins, found.left_out, found.score["est"]) == (4, 1, 2)
    with pytest.raises(UserError, match="only 1 of 3 prompts have two marks in every reply"):
        tallied([[[1, np.nan, 1]]], [[[1, 1, np.nan]]])


def test_the_interval_over_runs_covers_parity_where_the_arms_differ_only_by_luck():
    """Two methods that are equally good: each run has its luck. An interval over prompts only misses parity often."""
    rng, runs, prompts, missed = np.random.default_rng(1), 3, 60, []
    for _ in range(200):
        luck = rng.normal(0, 0.4, (runs, 1, 1)) - rng.normal(0, 0.4, (1, runs, 1))
        verdicts = np.sign(np.round(luck + rng.normal(0, 0.8, (runs, runs, prompts))))
        scores = [tallied(some, some).score for some in (verdicts, verdicts[:1, :1])]
        missed.append([not score["lo"] <= 1 <= score["hi"] for score in scores])
    over_runs, over_prompts = np.mean(missed, axis=0)
    assert over_runs < 0.09  # nominal 0.05, standard error 0.015
    assert over_prompts > 0.3


def test_two_prompts_are_too_few_with_several_runs_as_with_one():
    for runs in (1, 2):
        found = tallied(np.ones((runs, runs, 2)), np.ones((runs, runs, 2)))
        assert found.score["too_few"] == 1
        assert conclusion(found, "a", "b") == "too few prompts have a winner to conclude anything"
    assert "too_few" not in tallied(np.ones((2, 2, 10)), np.ones((2, 2, 10))).score


def test_the_interval_stays_on_the_scale_of_the_winning_score():
    verdicts = np.ones((2, 2, 12))
    verdicts[0, 0, :3] = -1
    score = tallied(verdicts, verdicts).score
    assert 0 <= score["lo"] < score["est"] < score["hi"] == 2


def test_ties_hide_no_flips():
    """Of 30 pairs with a winner in both orders 25 flip, however many others are ties in both orders."""
    straight, swapped = [0] * 70 + [1] * 30, [0] * 70 + [-1] * 25 + [1] * 5
    found = tallied([[straight]], [[swapped]])
    assert (found.decided, found.flips) == (30, 25 / 30)
    assert "in 83.3 % of the 30 pairs with a winner in both orders (at most 30 %" in conclusion(found, "a", "b")


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def project(tmp_path, monkeypatch, server):
    """A folder in which `tools.judge` runs, with the arms of the default and this server as the judge."""
    prefer = {"dpo": {"arm": "ifd", "pairs": "some", "labels": "given", "seed": 1, "replicate": None}}
    settings = {"ask__concurrency": 4, "ask__timeout": 30, "ask__retries": 0, "prefer": prefer}
    return prepare_asking(tmp_path, monkeypatch, server.url, **settings)


def write_answers(arm: str, answers: list[str]) -> None:
    numbers = [f"{number:03}" for number in range(len(answers))]
    rows = {"id": numbers, "prompt": [f"질문 {number}" for number in numbers], "answer": answers}
    write_table(Path(f"data/answers/{arm}.parquet"), rows, ANSWERS)


def answers_in(question: str) -> tuple[str, str]:
    found = re.search(
        r"\[답변 1 시작\]\n(.*)\n\n\[답변 1 끝\]\n\n\[답변 2 시작\]\n(.*)\n\n\[답변 2 끝\]", question, re.DOTALL
    )
    return found[1], found[2]


def prefers_the_longer(question: str) -> str:
    first, second = map(len, answers_in(question))
    return f"{5 + (first > second)} {5 + (second > first)}\n설명"


def judged(server, capsys, *words: str, code: int = 0) -> tuple[int, list[str]]:
    """Run the command; return how many requests the server got, and what was printed."""
    before = server.asked.total()
    assert judge.main([*words]) == code
    printed = capsys.readouterr()
    return server.asked.total() - before, (printed.err if code else printed.out).splitlines()


def write_runs(lengths: dict[str, list[int]]) -> None:
    for arm, sizes in lengths.items():
        write_answers(arm, [f"{arm} " + "가" * (size - len(arm) - 1) for size in sizes])


def test_an_honest_judge_gives_the_verdicts_of_a_hand_count(project, server, capsys):
    server.says = prefers_the_longer
    lengths = {
        "middle": [20, 30, 40, 50, 60, 70], "middle_2": [25, 35, 45, 55, 65, 75],
        "random": [30, 30, 30, 30, 30, 30], "random_2": [20, 21, 46, 35, 35, 35],
    }  # fmt: skip
    write_runs(lengths)
    signs = np.sign(
        [
            [np.subtract(lengths[our], lengths[their]) for their in ("random", "random_2")]
            for our in ("middle", "middle_2")
        ]
    )
    count, lines = judged(server, capsys, "middle")
    assert count == 0
    assert "middle, middle_2 against random, random_2: 6 prompts, 24 pairs of answers" in lines
    assert "0 of them are in data/mine/ledger; 48 are to be asked" in lines
    assert lines[-1].startswith("nothing was asked; `python -m tools.judge ")
    count, paid = judged(server, capsys, "middle", "--yes")
    assert count == 48
    assert "48 requests were answered: ok 48" in paid
    assert "next: `dvc add data/mine/ledger`, commit data/mine/ledger.dvc, `dvc push`" in paid
    sums = [(signs == side).sum() for side in (1, -1, 0)]
    assert "middle: {} wins, {} losses, {} ties".format(*sums) in paid
    score = next(line for line in paid if line.startswith("winning score"))
    assert score.startswith(f"winning score of middle (0 to 2, 1 is parity): {1 + signs.mean():.4f} [")
    assert score.endswith("a 95 % interval over 6 prompts and 2 x 2 runs")
    assert "pairs with a winner in both orders: 22; the order changes the winner of 0.0 %" in paid
    assert "winners that came first: 50.0 % (50 % means no bias)" in paid
    count, again = judged(server, capsys, "middle", "--yes")
    assert count == 0
    assert again[-5:] == paid[-5:]


def test_the_other_way_round_costs_nothing_and_says_the_opposite(project, server, capsys):
    server.says = prefers_the_longer
    write_runs({"ifd": [50] * 20, "base": [20] * 20})
    ours = judged(server, capsys, "ifd", "base", "--yes")[1]
    assert "ifd: 20 wins, 0 losses, 0 ties" in ours
    assert "[2.0000, 2.0000], a 95 % interval over 20 prompts only; other runs of the same arms" in ours[-2]
    assert ours[-1] == "this judge prefers the answers of ifd to those of base"
    count, theirs = judged(server, capsys, "base", "ifd")
    assert count == 0
    assert "base: 0 wins, 20 losses, 0 ties" in theirs
    assert theirs[-1] == "this judge prefers the answers of ifd to those of base"


def test_a_judge_who_always_prefers_the_first_cannot_tell_and_the_sentence_says_so(project, server, capsys):
    server.says = lambda _: "8 7"
    write_runs({arm: [20 + number] * 12 for number, arm in enumerate(["middle", "middle_2", "random", "random_2"])})
    _, lines = judged(server, capsys, "middle", "--yes")
    assert "middle: 0 wins, 0 losses, 48 ties" in lines
    assert any("parity): 1.0000 [1.0000, 1.0000]" in line for line in lines)
    assert "pairs with a winner in both orders: 48; the order changes the winner of 100.0 %" in lines
    assert "winners that came first: 100.0 % (50 % means no bias)" in lines
    assert lines[-1] == (
        "this judge cannot tell these answers apart: the order of the answers changes the winner in 100.0 % of the 48 "
        "pairs with a winner in both orders (at most 30 % is acceptable)"
    )


def test_equal_answers_are_ties_that_nobody_is_asked_about(project, server, capsys):
    server.says = prefers_the_longer
    write_answers("ifd", ["같은 답", "긴 답입니다", ""])
    write_answers("base", ["같은 답", "답", ""])
    count, lines = judged(server, capsys, "ifd", "base", "--yes")
    assert count == 2
    assert "2 pairs have equal answers and are ties; the others need 2 different requests" in lines
    assert "ifd: 1 wins, 0 losses, 2 ties" in lines
    assert lines[-1] == "too few prompts have a winner to conclude anything"


def test_replies_without_two_marks_are_counted_and_shown(project, server, capsys):
    server.says = lambda question: "둘 다 좋습니다" if "질문 000" in question else prefers_the_longer(question)
    write_runs({"ifd": [50] * 14, "base": [20] * 14})
    _, lines = judged(server, capsys, "ifd", "base", "--yes")
    assert "28 requests were answered: ok 26, unparsed 2" in lines
    assert "replies without two marks: unparsed 2" in lines
    assert "prompts left out because of these replies: 1" in lines
    assert "ifd: 13 wins, 0 losses, 0 ties" in lines


def test_a_preference_is_compared_with_the_arm_that_was_trained_further(project, server, capsys):
    write_runs({"dpo": [20, 20], "ifd": [30, 30]})
    assert judged(server, capsys, "dpo")[1][0] == "dpo against ifd: 2 prompts, 2 pairs of answers"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["none"],
            "none is neither an arm nor a preference, or it is a replicate; name one of base, dpo, ifd, middle, random",
        ),
        (["middle_2"], "middle_2 is neither an arm nor a preference, or it is a replicate"),
        (["random"], "random cannot be compared with itself"),
        (["ifd"], "data/answers/random_2.parquet: missing; run `dvc repro`, or `dvc pull`"),
    ],
)
def test_what_cannot_be_compared_is_said(project, server, capsys, words, message):
    assert message in judged(server, capsys, *words, code=1)[1][0]


def test_answers_to_other_prompts_are_an_error(project, server, capsys):
    write_runs({"ifd": [30] * 3, "base": [30] * 2})
    assert (
        "base.parquet: other prompts than in data/answers/ifd.parquet"
        in judged(server, capsys, "ifd", "base", code=1)[1][0]
    )


def test_comparisons_in_the_ledger_change_no_rating_and_ratings_no_comparison(project, server, capsys):
    change_params(project, rate__judge="ledger", ask__retries=2)
    write_rows([f"질문 {number}" for number in range(5)])
    assert asked(server, "--yes") == 5
    before = marks()
    capsys.readouterr()
    server.says = prefers_the_longer
    write_runs({"ifd": [50] * 12, "base": [20] * 12})
    count, paid = judged(server, capsys, "ifd", "base", "--yes")
    assert count == 24
    assert asked(server, "--yes") == 0
    assert marks().equals(before)
    assert "5 of them are in data/mine/ledger; 0 are to be asked" in capsys.readouterr().out
    assert judged(server, capsys, "ifd", "base")[1][-4:] == paid[-4:]


def test_what_a_killed_run_left_is_not_asked_again(project, server, capsys):
    server.says = prefers_the_longer
    write_runs({"ifd": [50] * 12, "base": [20] * 12})
    judged(server, capsys, "ifd", "base", "--yes")
    (part,) = LEDGER.glob("*.parquet")
    left = pd.read_parquet(part)[:10].astype(object).where(lambda table: table.notna(), None).to_dict("records")
    shutil.rmtree(LEDGER)
    journal = judge.journal_path()
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("".join(json.dumps(row) + "\n" for row in left) + '{"key": "to', encoding="ascii")
    count, lines = judged(server, capsys, "ifd", "base", "--yes")
    assert count == 14
    assert "an earlier run was killed; the 10 replies that it left are now in data/mine/ledger" in lines


def test_a_judges_prompt_must_show_the_question_and_both_answers(tmp_path):
    path = tmp_path / "prompt.yaml"
    path.write_text(PROMPT.read_text(encoding="utf-8").replace("{second}", "{first}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"must have \{prompt\}, \{first\} and \{second\}, each once"):
        read_params(PairPrompt, path)


def test_braces_and_markers_in_an_answer_stay_as_they_are(project, server, capsys):
    write_answers("ifd", ["{first} {0}", "나"])
    write_answers("base", ["{second}", "다"])
    server.says = prefers_the_longer
    judged(server, capsys, "ifd", "base", "--yes")
    assert {answers_in(question) for question in server.asked if "{" in question} == {
        ("{first} {0}", "{second}"), ("{second}", "{first} {0}"),
    }  # fmt: skip


def test_the_sentence_names_the_winner_or_says_that_there_is_none():
    always, never, mixed = np.ones((2, 2, 20)), -np.ones((2, 2, 20)), np.tile([1.0, -1.0], (2, 2, 10))
    found = [conclusion(tallied(side, side), "a", "b") for side in (always, never, mixed)]
    assert found == [
        "this judge prefers the answers of a to those of b",
        "this judge prefers the answers of b to those of a",
        "no preference found between the answers of a and b",
    ]
