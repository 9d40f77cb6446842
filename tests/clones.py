"""Clones of the shrunken project, with real DVC: fixtures of the tests of reruns and of teams."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.project import ARMS, commit, copy_project, ran, run, shrink


def each(stage: str, arms: Iterable[str] = ARMS) -> set[str]:
    return {f"{stage}@{arm}" for arm in arms}


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunken project as a git repository that was never run, with a team's remote."""
    folder = copy_project(tmp_path_factory.mktemp("origin"))
    shrink(folder)
    for path in [folder / "dvc.lock", *(folder / "metrics").rglob("*.json")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "metrics" / "plots", ignore_errors=True)
    run(folder, "dvc", "remote", "add", "-q", "-d", "team", str(tmp_path_factory.mktemp("remote")))
    commit(folder, "cut short")
    return folder


def clone(source: Path, folder: Path) -> Path:
    run(folder.parent, "git", "clone", "-q", str(source), str(folder))
    return folder


@pytest.fixture(scope="session")
def done(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that was reproduced, committed and pushed."""
    folder = clone(origin, tmp_path_factory.mktemp("clone") / "one")
    assert each("train") | {"report"} <= ran(run(folder, "dvc", "repro"))
    commit(folder, "reproduced")
    run(folder, "dvc", "push", "-q")
    return folder


@pytest.fixture
def project(done: Path) -> Iterator[Path]:
    """The reproduced clone; a test's changes to it are undone."""
    yield done
    for path in (done / "params.yaml", *(done / "stages").rglob("*.py")):
        path.touch()  # once dvc has staged its lock, git can miss a recent edit of equal size
    run(done, "git", "reset", "-q", "--hard")
    run(done, "git", "clean", "-fdq")
    run(done, "dvc", "checkout", "-q", "--force")
