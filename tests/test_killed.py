"""Kill -9 anywhere, run again, same bytes: real dvc, stages that take seconds, and moments drawn at random."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from stages.lib.core.portable import PORTABLE
from tests.project import ENVIRONMENT, change_params, commit, copy_project, run, shrink

OUTS = {"ppl": "data/ppl.parquet", "embed": "data/embeddings.parquet"}
SYLLABLES = "가나다라마바사아자차카타파하고노도로모보소오조초코토포호"
COLUMNS = {"instruction": ["instruction"], "output": "output"}
FILE = {"from": "file", "revision": None, "config": None, "split": None}
ROWS = 120
NATIVE = {name: value for name, value in ENVIRONMENT.items() if name not in PORTABLE}
SMALL = {"layers": 6, "width": 256, "heads": 4, "steps": 1}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose ppl and embed take a few seconds each; everything before them is done and committed."""
    folder = copy_project(tmp_path_factory.mktemp("killed") / "project")
    rng = random.Random(1)
    inputs = folder / "data/mine/inputs"
    inputs.mkdir(parents=True)
    with (inputs / "many.jsonl").open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            text = " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(rng.randint(2, 60)))
            file.write(json.dumps({"instruction": f"{number} {text}", "output": "답"}, ensure_ascii=False) + "\n")
    shrink(folder)
    change_params(
        folder,
        fetch__inputs="data/mine/inputs",
        fetch__sources={"many": {"name": "many.jsonl"} | FILE},
        merge__sources=[{"name": "many"} | COLUMNS],
        merge__held_out__sources=[],
        **{f"fetch_model__{role}__small__{key}": v for role in ("scorer", "encoder") for key, v in SMALL.items()},
    )
    cache = folder / "stages/lib/scoring/cache.py"  # shorter chunks, so that a few seconds of work make several
    cache.write_text(cache.read_text().replace("CHUNK_SECONDS = 2.0", "CHUNK_SECONDS = 0.3"))
    run(folder, "dvc", "repro", "merge", "fetch_model@scorer", "fetch_model@encoder")
    commit(folder, "up to the scores")
    return folder


def start(project: Path, *stages: str) -> subprocess.Popen:
    command = ["dvc", "repro", "--no-run-cache", *stages]
    with (project / "log").open("w") as log:
        return subprocess.Popen(command, cwd=project, env=NATIVE, stdout=log, stderr=log, start_new_session=True)


def forget(project: Path) -> None:
    """Remove the scores, and dvc's record of them."""
    run(project, "rm", "-rf", ".checkpoints", *OUTS.values())
    run(project, "git", "checkout", "-q", "HEAD", "--", "dvc.lock")  # dvc has staged its own


@pytest.fixture(scope="module")
def whole(project: Path) -> dict[str, bytes]:
    """What uninterrupted stages write."""
    forget(project)
    assert start(project, *OUTS).wait() == 0
    return {stage: (project / name).read_bytes() for stage, name in OUTS.items()}


def kept(project: Path) -> int:
    """Return the number of chunks in .checkpoints."""
    return len(list((project / ".checkpoints").glob("*/*.parquet")))


def check(project: Path, whole: dict[str, bytes], *stages: str) -> None:
    assert start(project, *stages).wait() == 0, (project / "log").read_text()
    assert_same(project, whole, *stages)


def assert_same(project: Path, whole: dict[str, bytes], *stages: str) -> None:
    for stage in stages:
        assert (project / OUTS[stage]).read_bytes() == whole[stage]


def kill_at(project: Path, delay: float) -> int:
    """Kill dvc and its stage after some seconds; return how many chunks there were."""
    forget(project)
    started = start(project, *OUTS)
    time.sleep(delay)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    return kept(project)


def start_until_a_chunk(project: Path) -> subprocess.Popen:
    """Start ppl from nothing; return once it has kept a first chunk."""
    forget(project)
    started = start(project, "ppl")
    while not list((project / ".checkpoints/ppl").glob("*.parquet")) and started.poll() is None:
        time.sleep(0.1)
    return started


@pytest.mark.slow
def test_a_run_that_is_killed_after_a_chunk_goes_on_from_there(project: Path, whole: dict[str, bytes]) -> None:
    started = start_until_a_chunk(project)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    check(project, whole, "ppl")
    log = (project / "log").read_text()
    have, compute = map(int, re.search(r"(\d+) have scores in .*, (\d+) to compute", log).groups())
    assert have > 0
    assert have + compute == ROWS


@pytest.mark.slow
def test_dvc_alone_killed_and_started_again_at_once_does_the_work_once(project: Path, whole: dict[str, bytes]) -> None:
    started = start_until_a_chunk(project)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    check(project, whole, "ppl")
    time.sleep(3)  # by now an orphan would have overwritten the output
    assert_same(project, whole, "ppl")


@pytest.mark.slow
def test_twenty_runs_killed_at_random_end_with_the_same_bytes(project: Path, whole: dict[str, bytes]) -> None:
    forget(project)
    started = time.monotonic()
    check(project, whole, *OUTS)
    seed, seconds = random.SystemRandom().randrange(10**6), time.monotonic() - started
    rng, after_a_chunk, delays = random.Random(seed), 0, []
    print(f"seed {seed}, an uninterrupted run takes {seconds:.1f} s")
    while len(delays) < 20 or after_a_chunk < 12:
        delays.append(rng.uniform(0, seconds))
        chunks = kill_at(project, delays[-1])
        after_a_chunk += chunks > 0
        print(f"killed after {delays[-1]:.1f} s, {chunks} chunks")
        check(project, whole, *OUTS)
