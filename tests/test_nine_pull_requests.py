"""Nine real pull requests over ssh: the report in a clone that pulled nothing, against an independent count.

The rows, the benchmark and the stages are the default's; models are trained for two steps.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.clones import clone
from tests.project import ARMS, change_params, commit, run
from tests.remotes import Remote, modify, push_copy, ssh_remote
from tests.test_selection_diff import count
from tools.selection_diff import DISPLACED, GONE, MOVED, NEW, QUOTA, SCORE, SETTINGS

pytestmark = pytest.mark.slow
Corpus = dict[str, pd.DataFrame]
AROUND = {QUOTA, DISPLACED}
FILE = {"from": "file", "name": "more.jsonl", "revision": None, "config": None, "split": None}


def add_source(folder: Path) -> None:
    rows = [{"question": f"새로 온 질문 {n}번은 무엇입니까?", "answer": f"답은 {n}입니다."} for n in range(60)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "data/inputs/more.jsonl").write_text("\n".join(lines) + "\n")
    params = read_params_of(folder)
    mapped = {"name": "more", "instruction": ["question"], "output": "answer"}
    change_params(folder, fetch__sources__more=FILE, merge__sources=[*params["merge"]["sources"], mapped])


def remove_source(folder: Path) -> None:
    fetched, mapped = (read_params_of(folder)[name]["sources"] for name in ("fetch", "merge"))
    kept = {name: source for name, source in fetched.items() if name != "knowledge"}
    change_params(folder, fetch__sources=kept, merge__sources=[one for one in mapped if one["name"] != "knowledge"])


def edit_row(folder: Path) -> None:
    """Change the answer of a row that `spread` selects."""
    selected = [json.loads(line) for line in (folder / "data/samples/spread.jsonl").read_text().splitlines()]
    path = folder / "data/inputs/life.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)  # some planted lines are not JSON
    wanted = [
        json.dumps(row["instruction"], ensure_ascii=False).encode() for row in selected if row["source"] == "life"
    ]
    (number, *_) = [n for n, line in enumerate(lines) for text in wanted if text in line and is_only(text, lines)]
    row = json.loads(lines[number])
    lines[number] = json.dumps(row | {"output": row["output"] + " 참고하세요."}, ensure_ascii=False).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def is_only(text: bytes, lines: list[bytes]) -> bool:
    """Return whether one line has the text: a planted copy would take the place of an edited row."""
    return sum(text in line for line in lines) == 1


def two_at_once(folder: Path) -> None:
    remove_source(folder)
    change_params(folder, fetch_model__scorer__small__seed=7)


def setting(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_params(folder, **changes)


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a new source": (add_source, {NEW, MOVED, *AROUND}),
    "a removed source": (remove_source, {GONE, MOVED, *AROUND}),
    "an edited row": (edit_row, {NEW, GONE, MOVED, *AROUND}),
    "K": (setting(cluster__clusters=5), {MOVED, *AROUND}),
    "the seed of k-means": (setting(cluster__seeds=[7, 2]), {MOVED, *AROUND}),
    "the scorer": (setting(fetch_model__scorer__small__seed=7), {SCORE}),
    "the fraction": (setting(arms__spread__fraction=0.2), {SETTINGS}),
    "the method": (setting(arms__spread__method="middle"), {SETTINGS}),
    "a removed source and the scorer": (two_at_once, {GONE, SCORE, MOVED, *AROUND}),
}
"""Each change, and the causes that it can have in `spread`."""
OF_ROWS = {"a new source", "a removed source", "an edited row", "a removed source and the scorer"}


def read_params_of(folder: Path) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(folder / "params.yaml")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with ssh_remote(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture(scope="module")
def author(remote: Remote, done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return push_copy(done, remote, tmp_path_factory.mktemp("author") / "clone")


def selections(folder: Path) -> Corpus:
    """Return by arm what the stages wrote of every row: by id its source, cell, score, and whether it is selected."""
    raw, table = (pd.read_parquet(folder / f"data/{name}.parquet") for name in ("raw", "candidates"))
    rows = raw[["id", "source"]].assign(candidate=table["reason"].isna()).set_index("id")
    samples = {arm: pd.read_parquet(folder / f"data/samples/{arm}.parquet").set_index("id") for arm in ARMS}
    columns = ["length_group", "cluster", "score", "selected"]
    return {arm: rows.join(sample[columns]) for arm, sample in samples.items()}


@pytest.fixture(scope="module")
def before(author: Path) -> Corpus:
    return selections(author)


def table_row(report: str, arm: str) -> dict[str, str]:
    """Return the arm's line in the table of arms, by the heads; empty if it has none."""
    lines = [line.strip("| ").split(" | ") for line in report.splitlines() if line.startswith("| ")]
    heads = next((line for line in lines if line[0] == "arm"), [])
    row = next((line for line in lines if line[0].startswith(f"`{arm}`")), [])
    return dict(zip(heads, row, strict=False))


def listed(report: str, arm: str) -> list[dict[str, int]]:
    """Return why the arm's rows came and why they went, with the numbers of rows."""
    found = re.search(rf"^`{arm}`, why in: (.*)\. Why out: (.*)\.$", report, re.MULTILINE)
    if not found:
        return [{}, {}]
    return [
        {cause.strip(): int(number) for cause, number in re.findall(r"([a-z ]+) (\d+)", side)}
        for side in found.groups()
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_the_report_is_what_an_independent_count_finds(
    author: Path, remote: Remote, before: Corpus, tmp_path: Path, change: str
) -> None:
    edit, possible = CHANGES[change]
    run(author, "git", "checkout", "-q", "-b", change.replace(" ", "-"), "main")
    run(author, "dvc", "checkout", "-q", "--force")
    edit(author)
    run(author, "dvc", "repro")
    commit(author, change)
    run(author, "dvc", "push", "-q")
    after, mate = selections(author), clone(author, tmp_path / "mate")
    modify(mate, remote.secret, "--local")
    start = time.monotonic()
    report = run(mate, "python", "-m", "tools.pr_report", "origin/main")
    print(f"\n{change}: {time.monotonic() - start:.1f} s")
    assert "all 10 gates hold" in report
    for arm in ARMS:
        unit, other = "cell" if arm == "spread" else "corpus", possible == {SETTINGS} and arm == "spread"
        came, went, swaps = count(before[arm], after[arm], unit, other, scored=arm == "spread")
        if change == "the seed of k-means":  # two ways to match the cells keep equally many rows, so causes can differ
            assert [sum(side.values()) for side in listed(report, arm)] == [sum(came.values()), sum(went.values())]
            swaps = int(table_row(report, arm).get("like for like", 0))
        else:
            assert listed(report, arm) == [came, went]
        moved, row = sum(came.values()), table_row(report, arm)
        if came or went:
            assert row["in / out"] == f"{moved} / {sum(went.values())}"
            assert (int(row["like for like"]), int(row["net"].split()[0])) == (swaps, moved - swaps)
        sizes = [int(table[arm]["selected"].sum()) for table in (before, after)]
        assert moved - sum(went.values()) == sizes[1] - sizes[0]
        assert bool(came or went) <= (change in OF_ROWS or arm == "spread")
    assert {*listed(report, "spread")[0], *listed(report, "spread")[1]} <= possible
    assert sum(map(len, listed(report, "spread"))) > 0
