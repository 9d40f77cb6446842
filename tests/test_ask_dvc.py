"""A ledger in a team, with real DVC: what one has paid for, nobody pays for again."""

from pathlib import Path

import pytest

from stages.lib.rating.ledger import read_ledger
from tests.clones import clone
from tests.judges import KEY, LEDGER, serving
from tests.project import ROOT, change_params, commit, run
from tests.test_ask import asked

PIPELINE = """
stages:
  merge:
    cmd: python merge.py
    deps: [merge.py, rows.txt]
    outs: [data/raw.parquet, data/leaks.parquet, data/duplicates.parquet]
  rate:
    cmd: >-
      python -m stages.rate --raw data/raw.parquet --leaks data/leaks.parquet --duplicates data/duplicates.parquet
      --model models/hub/scorer --ledger ${rate.ledger} --checkpoints .checkpoints/rate --ratings data/ratings.parquet
    deps: [data/raw.parquet, data/leaks.parquet, data/duplicates.parquet, "${rate.ledger}"]
    params: [rate]
    outs: [data/ratings.parquet]
"""
MERGE = """
import pyarrow as pa
import pyarrow.parquet as pq

texts = open("rows.txt", encoding="utf-8").read().split("\\n")[:-1]
turns = pa.nulls(len(texts), pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())])))
rows = {"id": texts, "source": ["one"] * len(texts), "instruction": texts, "output": texts, "turns": turns}
pq.write_table(pa.table(rows), "data/raw.parquet")
none = pa.table({"id": pa.array([], pa.string()), "drop": pa.array([], pa.bool_())})
for name in ("leaks", "duplicates"):
    pq.write_table(none, f"data/{name}.parquet")
"""


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def team(tmp_path_factory, server):
    """A project with 30 rows that were paid for, rated, committed and pushed."""
    folder = tmp_path_factory.mktemp("team") / "origin"
    (folder / "data/mine").mkdir(parents=True)
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    change_params(folder, rate__judge="ledger", rate__ledger=str(LEDGER), ask__url=server.url, ask__key="JUDGE_KEY")
    (folder / "data/reviews.jsonl").touch()
    files = {"dvc.yaml": PIPELINE, "merge.py": MERGE, ".gitignore": "/stages\n.checkpoints\n__pycache__\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "remote", "add", "-q", "-d", "team", str(folder.parent / "remote"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        add_rows(0, 30)
        run(folder, "dvc", "repro", "-q", "merge")
        assert asked(server, "--yes") == 30
        publish(folder)
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a clone."""
    (folder / "stages").symlink_to(ROOT / "stages")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JUDGE_KEY", KEY)


def add_rows(start: int, stop: int) -> None:
    with Path("rows.txt").open("a", encoding="utf-8") as file:
        file.writelines(f"질문 {number}\n" for number in range(start, stop))


def publish(folder: Path) -> None:
    run(folder, "dvc", "add", "-q", str(LEDGER))
    run(folder, "dvc", "repro", "-q", "rate")
    commit(folder, "paid")
    run(folder, "dvc", "push", "-q")


def test_ten_rows_added_on_an_unpulled_clone_are_named_and_only_they_are_asked(team, server, monkeypatch, tmp_path):
    folder = clone(team, tmp_path / "clone")
    enter(folder, monkeypatch)
    add_rows(30, 40)
    log = run(folder, "dvc", "repro", "--pull", "--allow-missing", code=None)
    assert "data/mine/ledger has no reply for 10 of 40 rows that need one; run `python -m tools.ask`" in log
    assert asked(server, "--yes") == 10
    run(folder, "dvc", "add", "-q", str(LEDGER))
    assert "Running stage 'rate'" in run(folder, "dvc", "repro")
    change_params(folder, rate__prompt="rating_en")
    assert asked(server) == 0
    change_params(folder, rate__prompt="rating_ko")
    assert asked(server, "--yes") == 0


def test_two_ledgers_are_united_and_nothing_is_lost_or_asked_again(team, server, monkeypatch, tmp_path, capsys):
    one, two = (clone(team, tmp_path / name) for name in ("one", "two"))
    for folder, start in ((one, 30), (two, 40)):
        enter(folder, monkeypatch)
        add_rows(start, start + 10)
        run(folder, "dvc", "repro", "-q", "--pull", "--allow-missing", "merge")
        run(folder, "dvc", "pull", "-q", f"{LEDGER}.dvc")
        assert asked(server, "--yes") == 10
        if folder == one:
            publish(one)
    add_rows(30, 40)
    run(two, "dvc", "repro", "-q", "merge")
    run(two, "git", "fetch", "-q", str(one), "main")
    capsys.readouterr()
    assert asked(server, "--union", "FETCH_HEAD") == 0
    assert "1 files of replies copied from FETCH_HEAD; 1 were here already" in capsys.readouterr().out
    assert len(read_ledger(LEDGER)) == 50
    assert asked(server, "--yes") == 0
    assert asked(server, "--union", "no-such-commit", code=1) == 0
    assert "data/mine/ledger at no-such-commit: " in capsys.readouterr().err


def test_replies_that_dvc_has_but_that_are_not_here_are_not_paid_for_again(team, server, monkeypatch, tmp_path, capsys):
    folder = clone(team, tmp_path / "clone")
    enter(folder, monkeypatch)
    run(folder, "dvc", "repro", "-q", "--pull", "--allow-missing", "merge")
    assert not LEDGER.exists()
    assert asked(server, "--yes", code=1) == 0
    assert "run `dvc pull data/mine/ledger.dvc`" in capsys.readouterr().err
