"""A team's clones, pulled or not: nothing is computed twice, and nothing outdated looks current."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.clones import clone, stages_of
from tests.project import UP_TO_DATE, change_params, commit, ran, run
from tools.forecast import MERGE_FIRST


def test_a_teammate_who_pulls_reruns_nothing_and_has_a_clean_tree(done: Path, tmp_path: Path) -> None:
    mate = clone(done, tmp_path / "mate")
    run(mate, "dvc", "pull", "-q")
    assert UP_TO_DATE in run(mate, "dvc", "repro")
    assert run(mate, "git", "status", "--porcelain") == ""
    assert (mate / "dvc.lock").read_bytes() == (done / "dvc.lock").read_bytes()


def test_an_unpulled_clone_is_up_to_date_and_trains_one_changed_arm_alone(done: Path, tmp_path: Path) -> None:
    mate = clone(done, tmp_path / "mate")
    assert UP_TO_DATE in run(mate, "dvc", "repro", "--allow-missing", "--dry")
    change_params(mate, arms__spread__fraction=0.2)
    log = run(mate, "dvc", "repro", "--pull", "--allow-missing", "train@spread")
    assert ran(log) == {"sample@spread", "train@spread"}
    assert not (mate / "models" / "full").exists()


@pytest.mark.slow
def test_an_unpulled_clone_runs_all_of_one_changed_arm_and_nothing_of_the_others(done: Path, tmp_path: Path) -> None:
    mate = clone(done, tmp_path / "mate")
    change_params(mate, arms__spread__fraction=0.2)
    log = run(mate, "dvc", "repro", "--pull", "--allow-missing")
    assert ran(log) == stages_of("spread") | {"audit", "report"}
    assert not (mate / "models" / "full").exists()


def test_an_unpulled_clone_sees_that_only_evaluate_was_rerun(done: Path, tmp_path: Path) -> None:
    author = clone(done, tmp_path / "author")
    run(author, "dvc", "pull", "-q")
    change_params(author, evaluate__shots=[1])
    run(author, "dvc", "repro", "-s", "evaluate@full")
    run(author, "dvc", "push", "-q")
    commit(author, "one evaluation, nothing below it")
    mate = clone(author, tmp_path / "mate")
    assert UP_TO_DATE not in run(mate, "dvc", "repro", "--allow-missing", "--dry", code=None)


@pytest.mark.slow
def test_ones_own_folder_added_whole_works_unpulled_too(done: Path, tmp_path: Path) -> None:
    author = clone(done, tmp_path / "author")
    shutil.copytree(author / "data/inputs", author / "data/mine/inputs")
    change_params(author, fetch__inputs="data/mine/inputs")
    run(author, "dvc", "add", "-q", "data/mine/inputs")
    run(author, "dvc", "pull", "-q", "--allow-missing")
    assert ran(run(author, "dvc", "repro")) == {"fetch"}  # the same bytes from another folder
    run(author, "dvc", "push", "-q")
    commit(author, "our own files")
    mate = clone(author, tmp_path / "mate")
    assert UP_TO_DATE in run(mate, "dvc", "repro", "--allow-missing", "--dry")
    change_params(mate, arms__spread__fraction=0.2)
    assert ran(run(mate, "dvc", "repro", "--pull", "--allow-missing", "sample@spread")) == {"sample@spread"}


def add_rows(folder: Path, count: int, start: int = 0) -> None:
    """Add instructions that no source has, each twice."""
    rows = [
        {"instruction": f"새로 온 질문 {start + n // 2}번은 무엇입니까?", "output": f"답 {n}"} for n in range(2 * count)
    ]
    with (folder / "data/inputs/assistant.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def computed(log: str) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+) to compute", log)]


@pytest.mark.slow
def test_added_rows_alone_are_scored_here_and_in_clones_pulled_or_not(done: Path, tmp_path: Path) -> None:
    for name in ("here", "pulled", "unpulled"):
        folder = clone(done, tmp_path / name)
        run(folder, "dvc", "remote", "default", "-q", "team")
        if name == "pulled":
            run(folder, "dvc", "pull", "-q")
        add_rows(folder, 5)
        log = run(folder, *MERGE_FIRST.split()) if name == "unpulled" else ""
        if log:
            foretold = run(folder, "python", "-m", "tools.forecast")
            assert [f"{stage}: 5 of" in foretold for stage in ("ppl", "embed")] == [True, True]
        log += run(folder, "dvc", "repro", "--pull", "--allow-missing", "ppl", "embed")
        assert ran(log) == {"fetch", "merge", "ppl", "embed"}
        assert computed(log) == [5, 5]
    outs = [(tmp_path / name / "dvc.lock").read_bytes() for name in ("here", "pulled", "unpulled")]
    assert len(set(outs)) == 1
    add_rows(folder, 2, start=5)  # only .checkpoints has the first five, because they are not committed
    assert computed(run(folder, "dvc", "repro", "--pull", "--allow-missing", "ppl", "embed")) == [2, 2]


@pytest.mark.slow
def test_params_that_come_back_find_their_scores_and_another_scorer_finds_none(project: Path) -> None:
    change_params(project, ppl__max_tokens=9)
    first = run(project, "dvc", "repro", "ppl")
    assert "have another fingerprint: max_tokens (was 512, is 9)" in first
    (every,) = computed(first)
    change_params(project, ppl__max_tokens=512)
    add_rows(project, 5)
    assert computed(run(project, "dvc", "repro", "ppl")) == [5]
    change_params(project, fetch_model__scorer__small__seed=7)
    last = run(project, "dvc", "repro", "ppl")
    assert re.search(r"have another fingerprint: weights \(was \w+, is \w+\)", last)
    assert computed(last) == [every + 5]


@pytest.mark.slow
def test_a_damaged_score_in_the_cache_is_noticed_and_computed_again(project: Path) -> None:
    shutil.rmtree(project / ".checkpoints", ignore_errors=True)
    cached = (project / "data/ppl.parquet").read_bytes()
    (path,) = [p for p in (project / ".dvc/cache").rglob("*") if p.is_file() and p.read_bytes() == cached]
    path.chmod(0o644)
    path.write_bytes(cached[:500] + bytes([cached[500] ^ 1]) + cached[501:])
    add_rows(project, 3, start=100)  # not the rows of before, or the run-cache would restore the output
    log = run(project, "dvc", "repro", "ppl")
    path.write_bytes(cached)
    assert re.search(r"data/ppl.parquet of the last commit cannot be read.*files/md5/\S+ is damaged", log)
    assert computed(log)[0] > 800


def test_metrics_diff_shows_what_4_bits_cost_the_base(done: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = clone(done, tmp_path / "clone")
    run(folder, "dvc", "pull", "-q")
    change_params(folder, arms={}, control=None, fetch_model__base__small__steps=40)  # after 2 no answer is its own
    assert ran(run(folder, "dvc", "repro")) == {
        "fetch_model@base",
        "model_size@base",
        "evaluate_base",
        "compare_base",
        "report",
    }
    commit(folder, "only the base")
    change_params(folder, evaluate__quantize="nf4")
    assert ran(run(folder, "dvc", "repro")) == {"evaluate_base", "compare_base", "report"}
    changes = json.loads(run(folder, "dvc", "metrics", "diff", "--json"))["metrics/summary.json"]
    assert "base.scores.0-shot.mean.accuracy" in changes
    assert {name.split(".")[0] for name in changes} == {"base"}
    assert all(abs(change["diff"]) < 0.2 for change in changes.values())
