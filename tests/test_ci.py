"""CI: the comment with the report, against a fake API on loopback, and what the workflows may do."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from ruamel.yaml import YAML

from tests.project import ROOT

MARKER = "<!-- dvc-report -->"
TOKEN = "ghs_NobodyMayReadThis"
OURS = re.compile(r"/repos/team/data/issues/(7/comments|comments/\d+)|/projects/5/merge_requests/7/notes(/\d+)?")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


class FakeApi(ThreadingHTTPServer):
    """The comments of a pull request. The first answers are `failures`; the first `lost` POSTs work but answer 502."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.comments: list[dict] = []
        self.failures: list[int] = []
        self.lost = 0
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, body: str, user: str = "Bot", author: int = 3) -> dict:
        """Add a comment as GitHub and GitLab describe it."""
        number = len(self.comments) + 1
        self.comments.append({"id": number, "body": body, "user": {"type": user}, "author": {"id": author}})
        return self.comments[-1]


class Handler(BaseHTTPRequestHandler):
    server: FakeApi

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: object) -> None:
        data = json.dumps(content, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_call(self) -> None:
        url = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}").get("body")
        self.server.calls.append(self.command)
        if TOKEN not in (self.headers.get("Authorization", "")[len("Bearer ") :], self.headers.get("PRIVATE-TOKEN")):
            return self.answer(401, {})
        if self.server.failures:  # even an API that repeats the token gives nothing away
            return self.answer(self.server.failures.pop(0), {"message": TOKEN})
        if url.path == "/user":
            return self.answer(200, {"id": 99})
        if not OURS.fullmatch(url.path) or (body is not None and len(body) > 65536):
            return self.answer(422, {})
        if self.command == "POST":
            made = self.server.add(body, author=99)
            self.server.lost -= 1
            return self.answer(502 if self.server.lost >= 0 else 201, made)
        if self.command in ("PATCH", "PUT"):
            comment = self.server.comments[int(url.path.split("/")[-1]) - 1]
            comment["body"] = body
            return self.answer(200, comment)
        size, page = (int(parse_qs(url.query)[name][0]) for name in ("per_page", "page"))
        return self.answer(200, self.server.comments[(page - 1) * size : page * size])

    do_GET = do_POST = do_PATCH = do_PUT = handle_call  # noqa: N815


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def comment(api, tmp_path):
    """Run .ci/comment on a report; check that the token is in no output and on no command line."""
    spy = f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/words\nexec {shutil.which("curl")} "$@"\n'
    (tmp_path / "curl").write_text(spy)
    (tmp_path / "curl").chmod(0o755)
    github = {
        "GITHUB_TOKEN": TOKEN,
        "GITHUB_API_URL": api.url,
        "GITHUB_REPOSITORY": "team/data",
        "PULL_REQUEST": "7",
    }

    def run(report: str, **variables: str) -> SimpleNamespace:
        (tmp_path / "report.md").write_text(report, encoding="utf-8")
        base = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        command = [ROOT / ".ci/comment", tmp_path / "report.md"]
        done = subprocess.run(command, env=base | (variables or github), capture_output=True, text=True, check=False)
        words = (tmp_path / "words").read_text() if (tmp_path / "words").exists() else ""
        assert TOKEN not in done.stdout + done.stderr + words
        assert done.stdout == ""
        return SimpleNamespace(code=done.returncode, error=done.stderr)

    return run


@needs_curl
def test_the_first_report_is_a_new_comment_and_the_next_edits_it(api, comment):
    assert comment("# 행 3개가 들어왔다\n").code == 0
    assert [c["body"] for c in api.comments] == [f"{MARKER}\n# 행 3개가 들어왔다\n"]
    assert comment("# again\n").code == 0
    assert [c["body"] for c in api.comments] == [f"{MARKER}\n# again\n"]
    assert api.calls == ["GET", "POST", "GET", "PATCH"]


@needs_curl
@pytest.mark.parametrize("before", [99, 100, 250])
def test_our_comment_is_found_on_any_page(api, comment, before):
    for number in range(before):
        api.add(f"{number}", "User")
    api.add(f"{MARKER}\nold")
    api.add("later")
    assert comment("new").code == 0
    assert api.comments[before]["body"] == f"{MARKER}\nnew"
    assert len(api.comments) == before + 2


@needs_curl
def test_a_full_last_page_without_our_comment_ends_the_search(api, comment):
    for number in range(100):
        api.add(f"{number}", "User")
    assert comment("new").code == 0
    assert (len(api.comments), api.calls) == (101, ["GET", "GET", "POST"])


@needs_curl
def test_a_marker_by_a_human_or_not_at_the_start_is_not_ours(api, comment):
    api.add(f"{MARKER}\nI am the report", "User")
    api.add(f"> quoted: {MARKER}\n")
    api.add(f"\n{MARKER}\n")
    kept = json.dumps(api.comments)
    assert comment(f"a row that says {MARKER}\n{MARKER}\n").code == 0
    assert json.dumps(api.comments[:3]) == kept
    assert comment("again").code == 0
    assert api.comments[3]["body"] == f"{MARKER}\nagain"
    assert len(api.comments) == 4


@needs_curl
@pytest.mark.parametrize("character", ["가", "🙂", "\\", "\n"])
def test_ninety_thousand_characters_are_cut_whole_and_the_comment_says_so(api, comment, character):
    assert comment(character * 90_000).code == 0
    marker, said, text = api.comments[0]["body"].split("\n", 2)
    assert marker == MARKER
    assert said == "> The report is cut here after 65000 characters. The CI job has all of it."
    assert text == "\n" + character * 65_000


@needs_curl
def test_a_report_at_the_limit_is_not_cut(api, comment):
    assert comment("가" * 65_000).code == 0
    assert api.comments[0]["body"] == f"{MARKER}\n{'가' * 65_000}"


@needs_curl
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_one_line_that_names_the_permission_and_is_not_retried(api, comment, status):
    api.failures = [status]
    done = comment("new")
    assert done.code == 1
    assert re.fullmatch(
        rf"\.ci/comment: GET http://\S+: {status}; the job needs `pull-requests: write`.*\n", done.error
    )
    assert (api.comments, api.calls) == ([], ["GET"])


@needs_curl
def test_after_an_error_of_the_server_it_tries_again(api, comment):
    api.failures = [500]
    done = comment("new")
    assert (done.code, api.calls) == (0, ["GET", "GET", "POST"])
    assert re.fullmatch(r"\.ci/comment: GET http://\S+: 500\n", done.error)


@needs_curl
def test_a_comment_that_was_made_although_the_server_said_502_is_not_made_twice(api, comment):
    api.lost = 1
    assert comment("new").code == 0
    assert api.calls == ["GET", "POST", "GET", "PATCH"]
    assert [c["body"] for c in api.comments] == [f"{MARKER}\nnew"]


@needs_curl
def test_an_answer_that_is_no_list_of_comments_fails(api, comment):
    api.failures = [200]
    assert (comment("new").code, api.calls) == (1, ["GET"])


@needs_curl
def test_an_empty_report_is_no_comment(api, comment):
    done = comment("")
    assert (done.code, api.calls) == (1, [])
    assert done.error.endswith("report.md is empty; see why the report was not written\n")


@needs_curl
def test_on_gitlab_the_note_is_that_of_the_tokens_user(api, comment):
    gitlab = {
        "GITLAB_CI": "true",
        "REPORT_TOKEN": TOKEN,
        "CI_API_V4_URL": api.url,
        "CI_PROJECT_ID": "5",
        "CI_MERGE_REQUEST_IID": "7",
    }
    api.add(f"{MARKER}\nI am the report")
    api.failures = [503]
    assert comment("first", **gitlab).code == 0
    assert comment("second", **gitlab).code == 0
    assert api.calls == ["GET", "GET", "GET", "POST", "GET", "GET", "PUT"]
    assert [note["body"] for note in api.comments] == [f"{MARKER}\nI am the report", f"{MARKER}\nsecond"]


@pytest.mark.parametrize("status", [0, 1, 2])
@pytest.mark.parametrize("summary", [True, False])
def test_the_report_is_shown_and_the_job_ends_with_its_status(tmp_path, status, summary):
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@: 행 2개"\nexit {status}\n')
    (tmp_path / "python").chmod(0o755)
    variables = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    if summary:
        variables["GITHUB_STEP_SUMMARY"] = str(tmp_path / "summary")
    command = [ROOT / ".ci/report", "4f2a1c9"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    report = "-m tools.pr_report 4f2a1c9: 행 2개\n"
    assert (done.returncode, done.stderr) == (status, "")
    assert (tmp_path / "report.md").read_text() == report
    assert (tmp_path / "summary").read_text() == report if summary else done.stdout == report


def test_the_key_of_the_remote_is_in_a_private_file_while_the_report_is_made(tmp_path):
    (tmp_path / "dvc").write_text('#!/bin/sh\n[ "$2" = default ] && echo team || echo "$@" >> dvc.log\n')
    look = 'key=$(grep -o "/.*" dvc.log); stat -c %a "$key"; cat "$key"; echo "${REMOTE_SSH_KEY-unset}"'
    (tmp_path / "python").write_text(f"#!/bin/sh\n{look}\n")
    for name in ("dvc", "python"):
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "REMOTE_SSH_KEY": "-----BEGIN\nsecret"}
    command = [ROOT / ".ci/report", "base"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "600\n-----BEGIN\nsecret\nunset\n"
    called = (tmp_path / "dvc.log").read_text()
    assert called.startswith("remote modify --quiet --local team keyfile /")
    assert not Path(called.split()[-1]).exists()


def steps(workflow: Path) -> list[dict]:
    jobs = YAML(typ="safe").load(workflow)["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_no_workflow_runs_a_forks_code_with_our_secrets():
    for workflow in WORKFLOWS:
        triggers = YAML(typ="safe").load(workflow)["on"]
        assert set([triggers] if isinstance(triggers, str) else triggers) <= {"push", "pull_request"}, workflow


def test_every_action_is_pinned_and_its_version_named():
    for workflow in WORKFLOWS:
        used = re.findall(r"uses: (.*)", workflow.read_text())
        assert used
        assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in used), used


def test_no_checkout_leaves_its_token_behind_and_no_script_is_composed_of_an_events_text():
    for workflow in WORKFLOWS:
        checkouts = [step for step in steps(workflow) if "checkout" in step.get("uses", "")]
        assert [step["with"]["persist-credentials"] for step in checkouts] == [False]
        assert not [step for step in steps(workflow) if "${{" in step.get("run", "")]


def test_only_the_comment_gets_the_token_and_only_the_reports_job_may_write():
    report = YAML(typ="safe").load(ROOT / ".github/workflows/report.yml")
    assert report["permissions"] == {}
    assert report["jobs"]["report"]["permissions"] == {"contents": "read", "pull-requests": "write"}
    with_token = [step["run"] for step in steps(ROOT / ".github/workflows/report.yml") if "github.token" in str(step)]
    assert with_token == [".ci/comment report.md"]
    assert YAML(typ="safe").load(ROOT / ".github/workflows/ci.yml")["permissions"] == {"contents": "read"}
