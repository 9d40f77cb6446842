"""Preferences with real DVC: what reruns if one of them changes, or its arm, or all are gone, also in a new clone."""

from pathlib import Path

import pytest

from tests.clones import clone, stages_of
from tests.project import UP_TO_DATE, change_params, commit, ran, run

PAIRS = {"from": "file", "inputs": "data/preference_inputs", "name": "politeness.jsonl", "revision": None}
PAIRS |= {"config": None, "split": None, "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
PAIRS |= {"held_out": {"share": 0.2, "max_rows": 20, "seed": 1}}
PREFER = {
    "dpo": {"arm": "spread", "pairs": "polite", "labels": "given", "seed": 1},
    "placebo": {"arm": "random", "pairs": "polite", "labels": "shuffled", "seed": 1},
}
FALSE_METRICS = "from tools.recompute import false_metrics; print(false_metrics('HEAD'))"
pytestmark = pytest.mark.slow


def chain(name: str) -> set[str]:
    return {f"{stage}@{name}" for stage in ("prefer", "evaluate_preferred", "generate_preferred", "compare_preferred")}


@pytest.fixture(scope="module")
def preferred(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with two preferences, reproduced, committed and pushed to a remote of its own."""
    folder = clone(done, tmp_path_factory.mktemp("preferences") / "clone")
    run(folder, "dvc", "pull", "-q")
    run(folder, "dvc", "remote", "add", "-q", "-d", "own", str(folder.parent / "remote"))
    change_params(
        folder, fetch_preferences={"polite": PAIRS}, prefer=PREFER, dpo__budget={"unit": "steps", "amount": 2}
    )
    log = run(folder, "dvc", "repro")
    assert ran(log) == {"fetch_preferences@polite", "report"} | chain("dpo") | chain("placebo")
    assert "dpo minus spread, held-out loss" in log
    assert "dpo: no sentence about its labels" in log
    commit(folder, "two preferences")
    run(folder, "dvc", "push", "-q")
    return folder


def test_another_seed_reruns_only_its_preference(preferred: Path, tmp_path: Path) -> None:
    folder = clone(preferred, tmp_path / "clone")
    run(folder, "dvc", "pull", "-q")
    change_params(folder, prefer__dpo__seed=2)
    assert ran(run(folder, "dvc", "repro")) == {"report"} | chain("dpo")


def test_a_changed_arm_reruns_its_preference_and_no_other(preferred: Path, tmp_path: Path) -> None:
    folder = clone(preferred, tmp_path / "clone")
    run(folder, "dvc", "pull", "-q")
    change_params(folder, arms__spread__seed=3)
    assert ran(run(folder, "dvc", "repro")) - {"audit"} == stages_of("spread") | chain("dpo") | {"report"}


def test_without_preferences_only_the_report_runs_and_their_files_are_named(preferred: Path, tmp_path: Path) -> None:
    folder = clone(preferred, tmp_path / "clone")
    run(folder, "dvc", "pull", "-q")
    change_params(folder, prefer={}, fetch_preferences={})
    log = run(folder, "dvc", "repro")
    assert ran(log) == {"report"}
    assert "git rm metrics/arms/dpo.json metrics/arms/placebo.json metrics/items/dpo.json" in log


def test_an_unpulled_clone_is_up_to_date_runs_one_chain_and_finds_the_metrics_true(
    preferred: Path, tmp_path: Path
) -> None:
    folder = clone(preferred, tmp_path / "clone")
    assert UP_TO_DATE in run(folder, "dvc", "repro", "--allow-missing", "--dry")
    assert run(folder, "python", "-c", FALSE_METRICS).strip().endswith("[]")
    foretold = run(folder, "python", "-m", "tools.forecast")
    assert "preferences to train" not in foretold
    change_params(folder, prefer__placebo__seed=2)
    assert "preferences to train: at most 1 (placebo)" in run(folder, "python", "-m", "tools.forecast")
    log = run(folder, "dvc", "repro", "--pull", "--allow-missing")
    assert ran(log) == {"report"} | chain("placebo")
