"""A conversation is trained on turn by turn, or it has a reason; nothing of it is lost silently."""

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.text.conversations import FOLLOWS, ROLES, Turn, as_column, settle, to_rows, turns_of, with_final_answers

LETTERS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
SHAPES = {
    "one question, one answer": ("ua", "ua"),
    "several rounds": ("uauaua", "uauaua"),
    "a system text": ("sua", "sua"),
    "a system text, several rounds": ("suaua", "suaua"),
    "a question in two messages": ("uua", "ua"),
    "an answer in two messages": ("uaaua", "uaua"),
    "a tool": ("uata", "uata"),
    "two tools at once": ("uatta", "uata"),
    "thanks after the last answer": ("uauau", "uaua"),
    "a tool's result that nobody reads": ("uatua", "turn_order"),
    "the assistant begins": ("auaua", "turn_order"),
    "a system text in the middle": ("uasua", "turn_order"),
    "a tool before any answer": ("uta", "turn_order"),
    "no answer": ("su", "no_answer"),
    "nothing": ("", "empty"),
}
TURN = st.builds(Turn, st.sampled_from(ROLES), st.sampled_from(["", "가", "나다"]))


def turns(letters):
    return [Turn(LETTERS[letter], f"{number}번째 말") for number, letter in enumerate(letters)]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_becomes_turns_or_has_a_reason(shape):
    letters, expected = SHAPES[shape]
    found = settle(turns(letters))
    assert "".join(turn.role[0] for turn in found.turns) == expected if found.reason is None else True
    assert (found.reason or expected) == expected


def test_messages_of_one_speaker_in_a_row_are_one_turn():
    said = [Turn("user", "안녕?"), Turn("user", "시를 써 줘"), Turn("assistant", "봄"), Turn("assistant", "여름")]
    assert settle(said).turns == [Turn("user", "안녕?\n시를 써 줘"), Turn("assistant", "봄\n여름")]


def test_an_empty_system_text_is_left_out():
    assert settle([Turn("system", ""), *turns("ua")]) == settle(turns("ua"))


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_an_empty_turn_is_a_reason(role):
    said = [turn if turn.role != role else Turn(role, "") for turn in turns("uata")]
    assert settle(said).reason == "empty"


@given(st.lists(TURN, max_size=8))
def test_every_text_is_trained_on_or_counted(said):
    found = settle(said)
    if found.reason:
        assert found.turns == said
        return
    texts = [turn.text for turn in said if turn.text]
    kept = [text for turn in found.turns for text in turn.text.split("\n")]
    assert texts[: len(kept)] == kept
    assert bool(texts[len(kept) :]) == bool(found.unanswered)


@given(st.lists(TURN, max_size=8))
def test_a_conversation_alternates_begins_with_a_question_and_ends_with_its_output(said):
    found = settle(said)
    if found.reason:
        return
    roles = [turn.role for turn in found.turns]
    assert next(role for role in roles if role != "system") == "user"
    assert found.turns[-1] == Turn("assistant", found.output)
    assert found.instruction == next(turn.text for turn in found.turns if turn.role == "user")
    assert all(after in FOLLOWS[before] for before, after in pairwise(roles))


@given(st.lists(TURN, max_size=8))
def test_settling_twice_changes_nothing(said):
    found = settle(said)
    assert settle(found.turns)[:2] == found[:2]


def test_turns_survive_a_table_and_a_file():
    table = pa.table({"instruction": ["가", "나"], "output": ["다", "라"], "turns": as_column([None, turns("sua")])})
    pair, conversation = to_rows(table)
    assert "turns" not in pair
    assert turns_of(pair) == [Turn("user", "가"), Turn("assistant", "다")]
    assert turns_of(conversation) == turns("sua")


def test_a_final_answer_takes_the_place_of_the_last_answer_only():
    said = [{"role": role, "text": text} for role, text in turns("uaua")]
    rows = [
        {"instruction": "2+3=?", "output": "2+3\n정답: 5", "final": "정답: 5"},
        {"instruction": said[0]["text"], "output": said[-1]["text"], "turns": said, "final": "정답: 7"},
        {"instruction": "왜?", "output": "그냥."},
    ]
    pair, conversation, other = map(turns_of, with_final_answers(rows))
    assert [turn.text for turn in pair] == ["2+3=?", "정답: 5"]
    assert conversation == [*turns("uaua")[:-1], Turn("assistant", "정답: 7")]
    assert [turn.text for turn in other] == ["왜?", "그냥."]
