"""A ledger finds a reply by what was asked, and notices damage."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stages.lib.core.errors import UserError
from stages.lib.rating.ledger import read_ledger, write_part
from stages.lib.rating.prompts import PROMPTS, messages_of
from stages.lib.rating.request import Request, key_of
from stages.lib.selection.candidates import may_be_candidates, reasons
from stages.lib.text.conversations import Turn, as_column

REQUEST = Request(model="judge", temperature=0, top_p=1, max_tokens=256, seed=None)
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


def reply(key: str, text: str | None = "8", error: str | None = None) -> dict:
    found = {"key": key, "reply": text, "finish_reason": "stop", "model": "judge-1", "error": error}
    return found | {"prompt_tokens": 10, "reply_tokens": 1}


def test_a_key_depends_on_everything_that_a_reply_depends_on_and_on_nothing_else():
    key = key_of(REQUEST.payload(MESSAGES))
    assert key == key_of(dict(reversed(REQUEST.payload(MESSAGES).items())))
    assert key == key_of(REQUEST.model_copy(update={"temperature": 0.0}).payload(MESSAGES))
    others = [
        REQUEST.payload(MESSAGES, sample=1),
        REQUEST.payload(MESSAGES[1:]),
        *(
            REQUEST.model_copy(update=change).payload(MESSAGES)
            for change in ({"model": "b"}, {"temperature": 1.0}, {"top_p": 0.9}, {"max_tokens": 1}, {"seed": 1})
        ),
    ]
    assert len({key, *map(key_of, others)}) == 8


def test_a_key_never_changes():  # because every reply would be paid for again
    text = (
        '{"max_tokens":256,"messages":[{"content":"s","role":"system"},{"content":"질문","role":"user"}],'
        '"model":"judge","sample":0,"seed":null,"temperature":0.0,"top_p":1.0}'
    )
    messages = [MESSAGES[0], {"role": "user", "content": "질문"}]
    assert key_of(REQUEST.payload(messages)) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("prompt", sorted(path.stem for path in PROMPTS.glob("*.yaml")))
def test_a_prompt_shows_the_whole_row_and_states_one_scale(prompt):
    turns = [
        Turn("system", "짧게"),
        Turn("user", "물"),
        Turn("assistant", "H2O"),
        Turn("user", "불"),
        Turn("assistant", "산화"),
    ]
    corpus = pa.table({"instruction": ["봄?", "물"], "output": ["3월", "산화"], "turns": as_column([None, turns])})
    (pair, conversation) = messages_of(prompt, corpus)
    assert [message["role"] for message in pair] == ["system", "user"]
    assert pair[1]["content"].startswith("### User:\n봄?\n\n### Assistant:\n3월\n\n")
    text = conversation[1]["content"]
    assert text.startswith(
        "### System:\n짧게\n\n### User:\n물\n\n### Assistant:\nH2O\n\n### User:\n불\n\n### Assistant:\n산화\n\n"
    )
    assert ("0~10점" in text) + ("0 to 10" in text) == 1


def test_an_unknown_prompt_is_named_with_those_that_there_are():
    with pytest.raises(UserError, match=r"rate\.prompt: .*/none\.yaml does not exist; .* rating_en, rating_ko"):
        messages_of("none", pa.table({"instruction": [], "output": [], "turns": []}))


def test_a_file_is_named_by_its_content_whatever_the_order_of_replies(tmp_path):
    one = write_part(tmp_path, [reply("a"), reply("b", None)])
    assert one == write_part(tmp_path, [reply("b", None), reply("a")])
    assert [path.name for path in tmp_path.iterdir()] == [one.name]


def test_of_several_replies_a_reply_goes_before_an_error_and_the_same_one_is_always_found(tmp_path):
    parts = [[reply("a", "8")], [reply("a", "9")], [reply("b", None, "400")], [reply("b", "7")]]
    names = {write_part(tmp_path, part).name: part[0] for part in parts}
    (tmp_path / ".gitkeep").touch()
    first = next(names[name] for name in sorted(names) if names[name]["key"] == "a")
    found = read_ledger(tmp_path)
    assert found["reply"].to_dict() == {"a": first["reply"], "b": "7"}


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    path = write_part(tmp_path, [reply("a")])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name}: its content does not match its name.*dvc checkout"):
        read_ledger(tmp_path)


def test_a_ledger_that_is_not_here_is_named(tmp_path):
    with pytest.raises(UserError, match=r"rate\.ledger: .* is not a folder; run `dvc pull"):
        read_ledger(tmp_path / "none")


def test_every_candidate_is_a_row_that_may_be_one():
    rng = np.random.default_rng(1)
    ids = pd.Series([str(number) for number in range(500)])
    instruction = pd.Series(rng.integers(0, 200, 500).astype(str))
    leaks, duplicates = (pd.DataFrame({"id": rng.choice(ids, 150), "drop": rng.random(150) < 0.7}) for _ in range(2))
    leaked, doubled = (ids.isin(table[table["drop"]]["id"]) for table in (leaks, duplicates))
    without_ppl = instruction.astype(int) % 7 == 0  # a function of the instruction, like nearness to held-out rows
    ppl, near = pd.Series(1.0, ids.index).mask(without_ppl), instruction.astype(int) % 11 == 0
    candidate = reasons(instruction, ppl, leaked, near, doubled, leaked & False).isna()
    may_be = may_be_candidates(instruction, ids, leaks, duplicates)
    assert may_be[candidate].all()
    assert not may_be[leaked | doubled].any()
    never = leaked & False
    everyone = reasons(instruction, pd.Series(1.0, ids.index), leaked, never, doubled, never).isna()
    assert (may_be == everyone).all()
