"""A judge's server on the loopback interface that answers as each question says, with every fault that servers have."""

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.project import ROOT, change_params

LEDGER = Path("data/mine/ledger")
KEY = "sk-a-key-that-nobody-may-see"
FIRST_TIME = {"busy", "failing", "hanging", "torn once"}
"""Faults that a question meets only once."""


def mark_by_length(question: str) -> str:
    return f"{len(question) % 21 / 2}점\n설명"


class Server(ThreadingHTTPServer):
    """Answers a question with `fault: NAME` in it by that fault; any other as `says` says."""

    daemon_threads = True
    delay = 0.0
    """Seconds that an answer takes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.says: Callable[[str], str] = mark_by_length
        self.lock = threading.Lock()
        self.now = self.most = 0
        """Requests in flight, and the most there ever were."""
        self.asked: Counter[str] = Counter()
        """How often each question was asked."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:  # the name that http.server calls
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked[question] += 1
            times = self.server.asked[question]
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            time.sleep(self.server.delay)
            fault = re.search(r"fault: ([a-z0-9 ]+)", question)
            self.answer(fault[1] if fault else "", times, self.server.says(question))
        except ConnectionError:
            pass  # the client was killed, or has given up
        finally:
            with self.server.lock:
                self.server.now -= 1

    def answer(self, fault: str, times: int, text: str) -> None:
        if fault in FIRST_TIME and times > 1:
            fault = ""
        if fault == "hanging":
            time.sleep(4)
        whole = completion(text)
        status, content = {
            "busy": (429, "{}"),
            "failing": (500, "{}"),
            "down": (503, "{}"),
            "bad": (400, json.dumps({"error": {"message": f"too long; you sent {self.headers['Authorization']}"}})),
            "locked": (401, json.dumps({"error": {"message": f"wrong key {self.headers['Authorization']}"}})),
            "torn": (200, whole[:40]),
            "torn once": (200, whole[:40]),
            "silent": (200, completion(None, "content_filter")),
            "no choice": (200, json.dumps({"choices": [], "model": "judge"})),
            "empty message": (200, json.dumps({"choices": [{"message": {}}]})),
            "cut": (200, completion("이 응답은", "length")),
        }.get(fault, (200, whole))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content.encode())))
        if fault == "busy":
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass


def completion(text: str | None, finish_reason: str = "stop") -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return json.dumps({"id": "1", "model": "judge-1", "choices": [choice], "usage": usage}, ensure_ascii=False)


def prepare_asking(folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, **changes: object) -> Path:
    """Make a folder in which this judge can be asked, with the params of the default and these changes."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    change_params(folder, rate__ledger=str(LEDGER), ask__url=url, ask__key="JUDGE_KEY", **changes)
    return folder


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
