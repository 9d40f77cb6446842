"""Two clones over a real server: what one has pushed, the other gets, and nothing damaged gets through."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.lib.core.errors import UserError
from tests.clones import clone
from tests.project import ENVIRONMENT, UP_TO_DATE, change_params, commit, ran, run
from tests.remotes import Remote, free_port, modify, push_copy, s3_remote, ssh_remote
from tests.test_team import add_rows, computed
from tools.revisions import RemoteError, read_at

SAMPLE = "data/samples/spread.parquet"


@pytest.fixture(scope="module", params=["ssh", pytest.param("s3", marks=pytest.mark.slow)])
def remote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    start = {"ssh": ssh_remote, "s3": s3_remote}[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="module")
def author(remote: Remote, done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reproduced clone that has pushed to the server."""
    return push_copy(done, remote, tmp_path_factory.mktemp("author") / "clone")


@pytest.fixture
def mate(author: Path, remote: Remote, tmp_path: Path) -> Path:
    """A fresh clone that has pulled nothing."""
    folder = clone(author, tmp_path / "mate")
    modify(folder, remote.secret, "--local")
    return folder


def test_a_clone_pulls_what_the_other_pushed_and_reruns_nothing(author: Path, mate: Path) -> None:
    run(mate, "dvc", "pull", "-q")
    assert UP_TO_DATE in run(mate, "dvc", "repro")
    assert run(mate, "git", "status", "--porcelain") == ""
    assert (mate / "dvc.lock").read_bytes() == (author / "dvc.lock").read_bytes()


@pytest.mark.slow
def test_what_a_teammate_has_run_comes_from_the_run_cache(author: Path, mate: Path) -> None:
    change_params(author, arms__spread__fraction=0.2)
    expensive = {"sample@spread", "train@spread"}
    assert expensive == ran(run(author, "dvc", "repro", "train@spread"))
    run(author, "dvc", "push", "-q", "--run-cache")
    locked = (author / "dvc.lock").read_bytes()
    run(author, "git", "reset", "-q", "--hard")  # DVC has staged its lock
    change_params(mate, arms__spread__fraction=0.2)  # the same change, not the commit
    log = run(mate, "dvc", "repro", "--pull", "--allow-missing", "train@spread")
    assert ran(log) == set()
    assert all(f"Stage '{stage}' is cached - skipping run" in log for stage in expensive)
    assert (mate / "dvc.lock").read_bytes() == locked
    assert not (mate / "models" / "full").exists()


@pytest.mark.slow
def test_a_teammates_scores_are_read_from_the_server(author: Path, mate: Path) -> None:
    add_rows(author, 5)
    assert computed(run(author, "dvc", "repro", "ppl")) == [5]
    run(author, "dvc", "push", "-q", "ppl")
    run(author, "git", "checkout", "-q", "-b", "rows")
    commit(author, "five rows")
    run(author, "git", "checkout", "-q", "main")
    run(mate, "git", "pull", "-q", "origin", "rows")
    add_rows(mate, 2, start=5)
    assert computed(run(mate, "dvc", "repro", "--pull", "--allow-missing", "ppl")) == [2]


class Stored:
    """A file's object on the server, as an administrator sees it."""

    def __init__(self, clone: Path, file: str) -> None:
        store = Repo(str(clone)).cloud.get_remote_odb()
        md5 = next(out.hash_info.value for out in Repo(str(clone)).index.outs if str(out) == file)
        self.path, self.fs = store.oid_to_path(md5), store.fs
        self.content: bytes = self.fs.cat_file(self.path)

    def write(self, content: bytes) -> None:
        self.fs.rm_file(self.path)
        self.fs.pipe_file(self.path, content)


@pytest.mark.parametrize("verify", ["true", "false"])
def test_a_damaged_object_is_refused_and_heals_when_it_is_put_back(
    author: Path, mate: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    stored = Stored(author, SAMPLE)
    modify(mate, {"verify": verify}, "--local")
    monkeypatch.chdir(mate)
    stored.write(stored.content[:-9] + bytes([stored.content[-9] ^ 1]) + stored.content[-8:])
    with pytest.raises(UserError, match=rf"{SAMPLE} at HEAD.*damaged"):
        read_at(SAMPLE, "HEAD")
    if verify == "true":
        run(mate, "dvc", "pull", "-q", SAMPLE, code=1)
        assert not Path(SAMPLE).exists()
    stored.write(stored.content)
    assert read_at(SAMPLE, "HEAD") == stored.content
    run(mate, "dvc", "pull", "-q", SAMPLE)
    assert Path(SAMPLE).read_bytes() == stored.content


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("trouble", ["a wrong secret", "nobody listens", "no answer"])
def test_a_remote_that_refuses_or_is_dead_is_one_clear_line_within_seconds(
    mate: Path, remote: Remote, silent_port: int, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs retries too
    monkeypatch.setitem(ENVIRONMENT, "AWS_MAX_ATTEMPTS", "1")
    ports = {"nobody listens": free_port(), "no answer": silent_port}
    modify(mate, remote.at(ports[trouble]) if trouble in ports else remote.wrong, "--local")
    monkeypatch.chdir(mate)
    start = time.monotonic()
    cause, effect = run(mate, "dvc", "pull", SAMPLE, code=1).splitlines()
    assert re.match("ERROR: failed to connect to (ssh|s3) ", cause)
    assert effect == "ERROR: failed to pull data from the cloud - 1 files failed to download"
    with pytest.raises(RemoteError, match=rf"^{SAMPLE} at HEAD: the remote .*; check the network.*") as error:
        read_at(SAMPLE, "HEAD")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 60
