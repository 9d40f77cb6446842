"""A real server that has OpenAI's API: `transformers serve`, with a tiny model made here."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from stages.lib.rating.ledger import read_ledger
from tests.judges import LEDGER, prepare_asking
from tests.test_ask import marks, write_rows
from tests.test_judge import write_answers
from tools import ask, judge

TEMPLATE = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"
SECONDS = 120


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(build, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    build("LlamaConfig", "LlamaForCausalLM", max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """The address of a server of that model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu", "--dtype", "float32"],
            env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    started = time.monotonic()
    while not is_up(f"http://127.0.0.1:{port}/health"):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() - started < SECONDS, log.read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait(10)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def project(url, model, tmp_path, monkeypatch):
    """A folder in which this server is the judge."""
    request = {"rate__request__model": str(model), "rate__request__max_tokens": 6, "rate__request__seed": 1}
    return prepare_asking(tmp_path, monkeypatch, url, rate__judge="ledger", ask__timeout=60, **request)


def test_a_real_server_is_asked_once_and_what_it_says_is_read(project, capsys):
    write_rows([f"질문 {number}" for number in range(6)])
    assert ask.main(["--yes"]) == 0
    replies = read_ledger(LEDGER)
    assert len(replies) == 6
    assert replies["reply"].str.len().gt(0).all()
    assert replies["reply_tokens"].between(1, 6).all()
    assert replies["prompt_tokens"].gt(50).all()
    assert replies["error"].isna().all()
    assert set(marks()["kind"]) <= {"ok", "unparsed", "out_of_range", "cut"}
    capsys.readouterr()
    assert ask.main(["--yes"]) == 0
    assert "6 of them are in data/mine/ledger; 0 are to be asked" in capsys.readouterr().out


def test_a_real_server_whose_model_gives_no_marks_is_asked_once_and_nothing_is_guessed(project, capsys):
    write_answers("ifd", ["가", "나"])
    write_answers("base", ["다", "라"])
    for to_ask in (4, 0):
        assert judge.main(["ifd", "base", "--yes"]) == 1
        out, error = capsys.readouterr()
        assert f"{to_ask} are to be asked" in out
        assert "replies without two marks:" in out
        assert error.endswith("0 of 2 prompts have two marks in every reply; use another judge\n")
