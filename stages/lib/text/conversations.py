"""Turns of a conversation: whether their order is possible, and how a table and a JSON Lines file store them.

A row of raw has turns only if it is more than one question and its answer: several rounds, a system text, or a tool.
Its instruction, which is scored and clustered, is the first turn of the user; its output is the last answer.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

ROLES = ("system", "user", "assistant", "tool")
TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))
EMPTY, NO_ANSWER, TURN_ORDER = "empty", "no_answer", "turn_order"
FOLLOWS = {None: {"system", "user"}, "system": {"user"}, "user": {"assistant"}, "assistant": {"user", "tool"}}
FOLLOWS |= {"tool": {"assistant"}}
"""The roles that may follow each role; None: the beginning."""


class Turn(NamedTuple):
    role: str
    """One of `ROLES`."""
    text: str


class Conversation(NamedTuple):
    turns: list[Turn]
    """As they are trained on or, if there is a reason, as they were read."""
    reason: str | None
    """Why it cannot be trained on; None if it can."""
    unanswered: int
    """Turns after the last answer, which were left out because they teach nothing."""

    @property
    def instruction(self) -> str:
        return next((turn.text for turn in self.turns if turn.role == "user"), "")

    @property
    def output(self) -> str:
        return next((turn.text for turn in reversed(self.turns) if turn.role == "assistant"), "")

    def is_pair(self) -> bool:
        """Whether it is one question and its answer, so that a row needs no turns."""
        return [turn.role for turn in self.turns] == ["user", "assistant"]


def settle(turns: Iterable[Turn]) -> Conversation:
    """Return the conversation that these turns make.

    An empty system text is left out, consecutive turns of one speaker are joined by a newline, and what comes after the
    last answer is left out. The reason is EMPTY if no turn is left or a turn has no text; NO_ANSWER if there is no
    answer; TURN_ORDER if a role follows another that it cannot follow (see `FOLLOWS`), such as an answer at the
    beginning, a system text in the middle, or a tool's result without an answer after it.
    """
    read = list(turns)
    said = [turn for turn in read if turn.text or turn.role != "system"]
    if not said or not all(turn.text for turn in said):
        return Conversation(read, EMPTY, 0)
    joined = [
        Turn(role, "\n".join(turn.text for turn in group)) for role, group in groupby(said, lambda turn: turn.role)
    ]
    last = max((number for number, turn in enumerate(joined, 1) if turn.role == "assistant"), default=0)
    if not last:
        return Conversation(read, NO_ANSWER, 0)
    settled = joined[:last]
    roles = [turn.role for turn in settled]
    if not all(role in FOLLOWS[before] for before, role in zip([None, *roles], roles, strict=False)):
        return Conversation(read, TURN_ORDER, 0)
    return Conversation(settled, None, len(joined) - last)


def as_column(conversations: Iterable[list[Turn] | None]) -> pa.Array:
    """Return the column `turns` of a table; null for a row without turns."""
    return pa.array([None if turns is None else [turn._asdict() for turn in turns] for turns in conversations], TURNS)


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows as a JSON Lines file has them; what a row does not have, such as turns, is no key of it."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def with_final_answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file with the final answer, if there is one, in place of the last answer."""
    return [answered(row, row["final"]) if "final" in row else row for row in rows]


def answered(row: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return the row with another last answer."""
    if "turns" not in row:
        return row | {"output": answer}
    return row | {"output": answer, "turns": [*row["turns"][:-1], Turn("assistant", answer)._asdict()]}


def whole_texts(table: pa.Table) -> tuple[list[str], list[str]]:
    """Return what was asked [N] and what was answered [N] in each row; of a conversation, in all of its turns.

    System texts and tools' results are part of what was asked.
    """
    asked, answered = table["instruction"].to_pylist(), table["output"].to_pylist()
    for row, turns in enumerate(table["turns"].to_pylist()):
        if turns:
            asked[row] = "\n".join(turn["text"] for turn in turns if turn["role"] != "assistant")
            answered[row] = "\n".join(turn["text"] for turn in turns if turn["role"] == "assistant")
    return asked, answered


def turns_of(row: dict[str, Any]) -> list[Turn]:
    """Return the turns of a row of a JSON Lines file; without `turns`, its instruction and its output."""
    if row.get("turns"):
        return [Turn(turn["role"], turn["text"]) for turn in row["turns"]]
    return [Turn("user", row["instruction"]), Turn("assistant", row["output"])]
