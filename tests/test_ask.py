"""A judge is paid once for each reply, whatever its server does and whenever the command is killed."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.dedup import DUPLICATES
from stages.lib.core.artifacts import read_arrow, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.rating.ledger import marks_of, read_ledger
from stages.merge import RAW
from tests.judges import KEY, LEDGER, prepare_asking, serving
from tests.project import change_params
from tools import ask, paying

FAULTS = ["busy", "failing", "hanging", "torn", "torn once", "silent", "bad", "no choice", "empty message", "cut"]


def write_rows(instructions: list[str], folder: Path = Path("data")) -> None:
    """Write these rows as raw, without leaks, near-duplicates and reviews."""
    rows = pd.DataFrame(
        {"instruction": instructions, "output": "답입니다.", "source": "one", "turns": None, "final": None}
    )
    rows["id"] = [f"{number:04}" for number in range(len(rows))]
    write_table(folder / "raw.parquet", rows[RAW.names], RAW)
    (folder / "reviews.jsonl").touch()
    for name in ("leaks", "duplicates"):
        write_table(folder / f"{name}.parquet", pd.DataFrame(columns=DUPLICATES.names), DUPLICATES)


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def project(tmp_path, monkeypatch, server):
    """A folder in which `tools.ask` runs, with 30 rows and this server as the judge."""
    settings = {"rate__judge": "ledger", "rate__prompt": "rating_ko"}
    prepare_asking(tmp_path, monkeypatch, server.url, **settings, ask__concurrency=4, ask__timeout=3, ask__retries=2)
    write_rows([f"질문 {number}" for number in range(30)])
    return tmp_path


def marks() -> pd.DataFrame:
    """Return what `rate` reads from the ledger."""
    corpus, rate = read_arrow(Path("data/raw.parquet")), read_params(paying.Paying).rate
    return marks_of(corpus, np.ones(len(corpus), bool), LEDGER, rate.prompt, rate.request)


def asked(server, *words: str, code: int = 0) -> int:
    """Run the command; return how many requests the server got."""
    before = server.asked.total()
    assert ask.main([*words]) == code
    return server.asked.total() - before


def test_without_yes_nobody_is_asked_and_the_price_is_named(project, server, capsys):
    assert asked(server) == 0
    out = capsys.readouterr().out
    assert (
        "30 rows may become candidates and need a reply from gpt-4o-mini with the prompt rating_ko: 30 requests" in out
    )
    assert "0 of them are in data/mine/ledger; 30 are to be asked" in out
    assert "1 each, a guess, because models/hub/scorer is not here" in out
    assert "replies: at most 7,680 tokens (max_tokens)" in out
    assert not LEDGER.exists()


def test_every_row_is_asked_about_once_and_gets_its_mark(project, server, capsys):
    assert asked(server, "--yes") == 30
    assert 1 < server.most <= 4
    assert "cost: 3,000 tokens of prompts, 210 of replies, 0.00058 USD" in capsys.readouterr().out
    found = marks()
    assert found["kind"].eq("ok").all()
    assert found["prompt_tokens"].sum() == 3000
    assert asked(server, "--yes") == 0
    assert "commit data/mine/ledger.dvc, `dvc push`, `dvc repro`" in capsys.readouterr().out


def test_an_estimate_counts_as_the_judge_did(project, server, capsys):
    asked(server, "--yes")
    write_rows([f"질문 {number}" for number in range(40)])
    asked(server)
    out = capsys.readouterr().out
    assert "as the judge counted 30 earlier prompts" in out
    assert "prompts: about 1,001 tokens" in out
    assert "about 70 (earlier replies have 7 each)" in out


def test_every_fault_of_a_server_ends_in_a_kind_and_is_not_asked_again(project, server):
    write_rows([f"fault: {fault}" for fault in FAULTS] + ["질문"])
    asked(server, "--yes")
    assert server.most <= 4
    kinds = dict(zip([*FAULTS, ""], marks()["kind"], strict=True))
    expected = {"torn": "error", "silent": "refused", "bad": "error", "no choice": "error", "empty message": "error"}
    assert kinds == dict.fromkeys([*FAULTS, ""], "ok") | expected | {"cut": "cut"}
    assert asked(server, "--yes") == 0


def test_a_server_is_asked_again_only_if_that_can_help(project, server):
    write_rows([f"fault: {fault}" for fault in FAULTS])
    asked(server, "--yes")
    times = {question.split("fault: ")[1].split("\n")[0]: count for question, count in server.asked.items()}
    once = {"silent", "bad", "cut"}
    assert times == {fault: 1 if fault in once else 2 for fault in FAULTS}


def test_a_busy_server_is_left_alone_for_as_long_as_it_says(project, server):
    write_rows(["fault: busy"])
    started = time.monotonic()
    assert asked(server, "--yes") == 2
    assert time.monotonic() - started >= 1  # without Retry-After, the pause is at most half a second


def test_a_request_that_still_fails_is_not_paid_and_is_asked_again_by_the_next_run(project, server, capsys):
    write_rows(["질문", "fault: down"])
    change_params(project, ask__retries=0)
    assert asked(server, "--yes", code=1) == 2
    assert "1 requests are still to be asked (1 x Error code: 503" in capsys.readouterr().err
    assert len(read_ledger(LEDGER)) == 1
    with pytest.raises(UserError, match=r"no reply for 1 of 2 rows that need one; run `python -m tools\.ask`"):
        marks()
    assert asked(server, "--yes", code=1) == 1


@pytest.mark.parametrize(
    ("fault", "most", "why"), [("bad", 13, "in a row"), ("down", 13, "in a row"), ("locked", 4, "401")]
)
def test_a_server_that_accepts_nothing_is_left_alone_and_nothing_is_kept(project, server, capsys, fault, most, why):
    write_rows([f"fault: {fault}\n{number}" for number in range(40)])
    change_params(project, ask__retries=0)
    assert asked(server, "--yes", code=1) <= most
    error = capsys.readouterr().err
    assert "40 requests are still to be asked" in error
    assert why in error
    assert not list(LEDGER.glob("*"))


def test_the_key_is_in_no_file_log_or_error(project, server, capsys, caplog):
    write_rows(["fault: bad", "질문", "fault: locked"])
    change_params(project, ask__retries=0, ask__concurrency=1)
    asked(server, "--yes", code=1)
    replies = read_ledger(LEDGER)
    assert replies["error"].dropna().str.contains("you sent Bearer ***", regex=False).tolist() == [True]
    printed = capsys.readouterr()
    assert "wrong key Bearer ***" in printed.err
    written = [path.read_bytes() for path in project.rglob("*") if path.is_file()]
    written += [str(replies.to_dict()).encode(), printed.out.encode(), printed.err.encode(), caplog.text.encode()]
    assert not [content for content in written if KEY.encode() in content]


@pytest.mark.parametrize("key", [None, "", "two words", "키"])
def test_a_key_that_is_missing_or_cannot_be_one_is_named_but_not_shown(project, server, capsys, monkeypatch, key):
    monkeypatch.delenv("JUDGE_KEY") if key is None else monkeypatch.setenv("JUDGE_KEY", key)
    assert asked(server, "--yes", code=1) == 0
    error = capsys.readouterr().err
    assert "JUDGE_KEY" in error
    assert not key or key not in error


def killed_run(server, answered: int) -> None:
    """Start the command in a process of its own, and kill it once the server has got that many requests more."""
    start = server.asked.total()
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(ask.main(["--yes"])))
    process.start()
    while server.asked.total() - start < answered and process.is_alive():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_any_moment_only_what_was_in_flight_is_asked_again(project, server, kills):
    import openai  # noqa: F401 (loaded here, so that the processes need not)

    server.delay = 0.02
    rows = 150
    write_rows([f"질문 {number}" for number in range(rows)])
    journal = Path(".checkpoints/ask/replies.jsonl")
    for moment in range(kills):
        killed_run(server, random.Random(moment).randrange(1, 20))
        known = paying.known_replies(LEDGER, journal)
        assert server.asked.total() - len(known) <= 4 * (moment + 1)  # a kill loses at most the four in flight
    assert 0 < len(known) < rows
    assert asked(server, "--yes") == rows - len(known)
    after_kills = marks()
    shutil.rmtree("data/mine")
    asked(server, "--yes")
    assert marks().equals(after_kills)


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b"}\n{"key": "c', encoding="ascii")
    assert [reply["key"] for reply in paying.read_journal(path)] == ["a", "b"]


def test_rows_with_equal_texts_share_a_reply_and_rows_that_no_arm_may_take_need_none(project, server):
    write_rows(["질문 1", "질문 2", "질문 1", "질문 3"])
    write_table(
        Path("data/duplicates.parquet"),
        {"id": ["0003"], "of": ["0000"], "kind": ["lexical"], "similarity": [0.9], "drop": [True]},
        DUPLICATES,
    )
    assert asked(server, "--yes") == 2
    corpus, rate = read_arrow(Path("data/raw.parquet")), read_params(paying.Paying).rate
    found = marks_of(corpus, np.array([True, True, False, False]), LEDGER, rate.prompt, rate.request)
    assert found["kind"].fillna("").tolist() == ["ok", "ok", "ok", ""]
    assert found["prompt_tokens"].fillna(-1).tolist() == [100, 100, 0, -1]


def test_rows_are_asked_about_a_second_time_only_with_again(project, server, capsys):
    asked(server, "--yes")
    assert asked(server, "--again", "12") == 0
    assert "12 rows are to be rated again" in capsys.readouterr().out
    assert asked(server, "--again", "12", "--yes") == 12
    assert marks()["score_again"].notna().sum() == 12
    assert asked(server, "--again", "12", "--yes") == 0
    assert asked(server, "--again", "15", "--yes") == 3
    assert asked(server, "--yes") == 0
    assert marks()["prompt_tokens"].sum() == 4500


def test_another_prompt_is_asked_and_the_first_is_still_there(project, server):
    asked(server, "--yes")
    before = marks()
    change_params(project, rate__prompt="rating_en")
    assert asked(server, "--yes") == 30
    change_params(project, rate__prompt="rating_ko")
    assert asked(server, "--yes") == 0
    assert marks().equals(before)


def test_the_bundled_ledger_takes_no_replies(project, server, capsys):
    change_params(project, rate__ledger="data/ledger")
    assert asked(server) == 0
    assert asked(server, "--yes", code=1) == 0
    assert "set it to a folder of your own, such as data/mine/ledger" in capsys.readouterr().err


def test_without_the_tables_of_earlier_stages_it_says_which_to_run(project, server, capsys):
    Path("data/leaks.parquet").unlink()
    assert asked(server, code=1) == 0
    expected = "data/leaks.parquet: missing; run `dvc repro dedup decontaminate`, or `dvc pull`"
    assert expected in capsys.readouterr().err


def test_the_tokenizer_of_the_local_judge_counts_the_prompts(project, server, capsys, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "models/hub/scorer"
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    asked(server)
    assert "by the tokenizer of models/hub/scorer; the judge's may count differently" in capsys.readouterr().out
