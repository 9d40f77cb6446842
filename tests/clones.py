"""Clones of the shrunken project, with real DVC: fixtures of the tests of reruns and of teams."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from tests.project import ARMS, change_params, commit, copy_project, ran, run, shrink


def each(stage: str, arms: Iterable[str] = ARMS) -> set[str]:
    return {f"{stage}@{arm}" for arm in arms}


def stages_of(arm: str) -> set[str]:
    return {f"{stage}@{arm}" for stage in ("sample", "train", "evaluate", "generate", "compare")}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all workers of pytest-xdist: the first of them to need it fills it, and none changes a file in it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "clones"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make_origin(folder / "origin", folder / "remote")
            reproduce(clone(folder / "origin", folder / "done"))
            (folder / "complete").touch()
    return folder


def make_origin(folder: Path, remote: Path) -> None:
    shrink(copy_project(folder))
    for path in [folder / "dvc.lock", *(folder / "metrics").rglob("*.json")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "metrics" / "plots", ignore_errors=True)
    run(folder, "dvc", "remote", "add", "-q", "-d", "team", str(remote))
    commit(folder, "cut short")


def clone(source: Path, folder: Path) -> Path:
    run(folder.parent, "git", "clone", "-q", str(source), str(folder))
    return folder


def reproduce(folder: Path) -> None:
    assert each("train") | {"report"} <= ran(run(folder, "dvc", "repro"))
    commit(folder, "reproduced")
    run(folder, "dvc", "push", "-q")


@pytest.fixture(scope="session")
def origin(shared: Path) -> Path:
    """The shrunken project as a git repository that was never run, with a team's remote."""
    return shared / "origin"


@pytest.fixture(scope="session")
def done(shared: Path) -> Path:
    """A clone that was reproduced, committed and pushed."""
    return shared / "done"


class Team(NamedTuple):
    author: Path
    """A clone with the pull request, committed and pushed."""
    remote: Path
    base: str
    """The commit that it branched off from."""

    def unpulled(self, folder: Path, own_remote: bool = False, verify: bool = False) -> Path:
        """Return a new clone without data; `own_remote`: with a copy of the remote that a test may damage."""
        mate = clone(self.author, folder / "mate")
        remote = shutil.copytree(self.remote, folder / "remote") if own_remote else self.remote
        text = f"['remote \"team\"']\n    url = {remote}\n    verify = {str(verify).lower()}\n"
        (mate / ".dvc/config.local").write_text(text)
        return mate


@pytest.fixture(scope="session")
def team(done: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A pull request that changes a cheap stage and the metrics, committed and pushed."""
    folder = tmp_path_factory.mktemp("team")
    author = shutil.copytree(done, folder / "author", symlinks=True)
    remote = shutil.copytree(shared / "remote", folder / "remote")
    run(author, "dvc", "remote", "modify", "-q", "--local", "team", "url", str(remote))
    base = run(author, "git", "rev-parse", "HEAD").strip()
    change_params(author, stability__fraction=0.2)
    assert ran(run(author, "dvc", "repro")) == {"stability", "report"}
    commit(author, "a pull request")
    run(author, "dvc", "push", "-q")
    return Team(author, remote, base)


@pytest.fixture(scope="session")
def own_clone(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(done, tmp_path_factory.mktemp("own") / "clone", symlinks=True)


@pytest.fixture
def project(own_clone: Path) -> Iterator[Path]:
    """The reproduced clone; a test's changes to it are undone."""
    yield own_clone
    for path in (own_clone / "params.yaml", *(own_clone / "stages").rglob("*.py")):
        path.touch()  # see tests.project.commit
    run(own_clone, "git", "reset", "-q", "--hard")
    run(own_clone, "git", "clean", "-fdq")
    run(own_clone, "dvc", "checkout", "-q", "--force")
