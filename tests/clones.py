"""Clones of the shrunken project, with real DVC: fixtures of the tests of reruns and of teams."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.project import commit, copy_project, ran, run, shrink

ARMS = {"spread", "steady", "random", "full"}


def each(stage: str, arms: set[str] = ARMS) -> set[str]:
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
def two_clones(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two fresh clones, reproduced side by side; the second only up to the evaluation of the control."""
    clones = [clone(origin, tmp_path_factory.mktemp("clone") / name) for name in ("one", "two")]
    targets: list[list[str]] = [[], ["evaluate@random"]]
    with ThreadPoolExecutor() as pool:  # the second with real starts, whose hash seeds differ
        one, two = pool.map(
            lambda f, words, forked: run(f, "dvc", "repro", *words, forked=forked), clones, targets, (1, 0)
        )
    assert each("train") | {"report"} <= ran(one)
    assert {"ppl", "embed", "train@random", "evaluate@random"} <= ran(two)
    return clones


@pytest.fixture(scope="session")
def done(two_clones: list[Path]) -> Path:
    """A clone that was reproduced, committed and pushed."""
    folder = two_clones[0]
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
