"""The forecast is what `dvc repro` then does: the stages that run, the texts that are scored, the arms to train."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.lib.core.artifacts import read_table
from tests.clones import clone, each
from tests.project import ROOT, UP_TO_DATE, change_params, commit, ran, run
from tests.test_team import add_rows
from tools import forecast as tool
from tools.forecast import MERGE_FIRST, Plan, plan_stages, presented_again

REPRO = ("dvc", "repro", "--pull", "--allow-missing")
TEXTS = re.compile(r"^(\w+): ([\d,]+) of ", re.MULTILINE)


def forecast_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, str]:
    """Return the plan, and what the command prints."""
    plans: list[Plan] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tool, "plan_stages", lambda repo: plans.append(plan_stages(repo)) or plans[-1])
    printed = "\n".join(tool.forecast(None))
    return plans[-1], printed


def texts_in(printed: str) -> dict[str, int]:
    """Return how many texts are to be computed, by stage; without the stages that have all."""
    found = {stage: int(count.replace(",", "")) for stage, count in TEXTS.findall(printed)}
    return {stage: count for stage, count in found.items() if count}


def texts_computed(log: str) -> dict[str, int]:
    """Return how many texts each stage computed, without the stages that had all."""
    parts = re.split(r"Running stage '([^']+)'", log)[1:]
    found = {stage: re.search(r"(\d+) to compute", text) for stage, text in zip(parts[::2], parts[1::2], strict=True)}
    return {stage: int(one[1]) for stage, one in found.items() if one and one[1] != "0"}


def test_the_command_starts_without_torch() -> None:
    code = "import sys, tools.forecast, tools.review; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_runs_if_nothing_changed_pulled_or_not(
    project: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (project, clone(done, tmp_path / "unpulled")):
        assert forecast_in(folder, monkeypatch) == (Plan({}, {}), "nothing changed, so nothing runs")


def test_a_comment_surely_reruns_only_its_stage_and_may_rerun_what_is_below(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (project / "stages/cluster.py").open("a") as file:
        file.write("# A remark.\n")
    plan, printed = forecast_in(project, monkeypatch)
    assert plan.will == {"cluster": ["stages/cluster.py"]}
    assert {"candidates", "report", *each("train")} <= set(plan.may)
    assert not {"ppl", "embed", "fetch", "evaluate_base"} & set(plan.may)
    assert "  cluster: stages/cluster.py\nwill run: cluster\n" in printed
    assert "arms to train: 0 to 3 (spread, random, full)" in printed
    assert ran(run(project, "dvc", "repro")) == {"cluster"}


@pytest.mark.slow
def test_scores_that_cannot_be_read_are_said_to_be_computed_again(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clone(done, tmp_path / "unpulled")
    with (folder / "stages/ppl.py").open("a") as file:
        file.write("# A remark.\n")
    run(folder, "dvc", "pull", "-q", "data/raw.parquet")
    run(folder, "dvc", "remote", "modify", "team", "url", str(tmp_path / "nowhere"))
    _, printed = forecast_in(folder, monkeypatch)
    rows = read_table(folder / "data/raw.parquet", "instruction")["instruction"].nunique()
    assert (
        f"ppl: {rows:,} of {rows:,} distinct texts to compute (the scores of the last commit cannot be read" in printed
    )
    (folder / "data/raw.parquet").unlink()
    (folder / ".dvc/cache").rename(tmp_path / "cache")
    _, printed = forecast_in(folder, monkeypatch)
    assert "data/raw.parquet cannot be read, so new texts are not counted" in printed
    assert "arms to train: 0 to 3" in printed


@pytest.mark.slow
def test_a_stage_whose_input_was_made_again_runs_although_nothing_is_here(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clone(done, tmp_path / "unpulled")
    lock = (folder / "dvc.lock").read_text()
    out = re.search(r"outs:\n +- path: data/eval/full\n +hash: md5\n +md5: (\w+)", lock)
    (folder / "dvc.lock").write_text(lock.replace(out[0], out[0].replace(out[1], "0" * 32)))
    plan, _ = forecast_in(folder, monkeypatch)
    assert plan.will == {"compare@full": ["data/eval/full"]}
    assert UP_TO_DATE not in run(folder, "dvc", "repro", "--allow-missing", "--dry", code=None)


def test_a_metric_edited_by_hand_is_named_and_may_be_written_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (project / "metrics/arms/full.json").open("a") as file:
        file.write(" ")
    plan, printed = forecast_in(project, monkeypatch)
    assert plan.will == {}
    assert plan.may == {"compare@full": ["metrics/arms/full.json"], "report": []}
    assert "  compare@full: metrics/arms/full.json" in printed


RAN = {"epochs": 2.5, "rows": 120, "steps": 40, "tokens": 40_000}
SAMPLE = {"rows": 120, "candidates": 1200}


@pytest.mark.parametrize(
    ("budget", "batch", "arm", "times"),
    [
        ({"unit": "steps", "amount": 80}, 8, {"fraction": 0.1}, 2),
        ({"unit": "steps", "amount": 40}, 16, {"fraction": 0.2}, 2),
        ({"unit": "rows", "amount": 900}, 8, {"fraction": 0.1}, 3),
        ({"unit": "tokens", "amount": 10_000}, 8, {"fraction": 0.1}, 0.25),
        ({"unit": "epochs", "amount": 5}, 8, {"fraction": 0.1}, 2),
        ({"unit": "epochs", "amount": 5}, 8, {"method": "all"}, 20),
        ({"unit": "epochs", "amount": 5}, 8, {"method": "threshold"}, 2),
    ],
)
def test_the_cost_of_a_training_follows_the_budget_and_the_arm(
    budget: dict, batch: int, arm: dict, times: float
) -> None:
    params = {"train": {"budget": budget, "batch": batch}, "arms": {"ours": {"method": "random"} | arm}}
    assert presented_again(params, "ours", {"train": RAN, "sample": SAMPLE}, 8) == pytest.approx(times)


def test_the_hours_are_those_of_the_flops_that_are_printed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_params(project, train__budget__amount=4, arms__longest={"method": "longest", "fraction": 0.1, "seed": 1})
    monkeypatch.chdir(project)
    *_, trained, evaluated, answered, total, hours = tool.forecast(3.6e6)
    last = {
        arm: json.loads((project / f"metrics/arms/{arm}.json").read_text())["cost"]
        for arm in ("spread", "random", "full")
    }
    like = [*last.values(), last["random"]]  # the new arm costs what the control costs
    tokens, flops = (2 * sum(cost[name] for cost in like) for name in ("training_tokens", "training_flops"))
    assert trained == f"arms to train: 4 (spread, random, full, longest), about {tokens:,} tokens, {flops:.2g} FLOPs"
    assert evaluated == "models to evaluate: at most 4 (spread, random, full, longest)"
    assert answered == "models to answer the prompts: at most 4 (spread, random, full, longest)"
    assert total == f"scoring and training: at most about {flops:.2g} FLOPs, without evaluation"
    assert hours == f"at 3.6e+06 FLOPs per second: {flops / 3.6e6 / 3600:.2g} hours"


def test_no_flops_are_printed_if_there_is_no_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("arms: {a: {}, b: {}}\ncontrol: b\nprefer: {dpo: {arm: a}}\n")
    plan = Plan({stage: ["it has never run"] for stage in ("train@a", "train@b", "prefer@dpo")}, {})
    costs = list(tool.training_costs(plan))
    assert [*(cost.what for cost in costs), *tool.total_lines(costs, 1e12)] == [
        "arms to train: 2 (a, b); 2 without an earlier run to go by",
        "preferences to train: at most 1 (dpo); 1 without an earlier run to go by",
        "scoring and training: the FLOPs are not known",
    ]


def test_an_unpulled_judge_of_another_role_has_no_scores(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clone(done, tmp_path / "unpulled")
    change_params(folder, rate__judge="likelihood", rate__model="base")
    _, printed = forecast_in(folder, monkeypatch)
    assert "distinct texts to compute (at most: models/hub/base may become another model)" in printed


def test_a_speed_must_be_a_number_above_0() -> None:
    for speed in ("0", "-1", "x"):
        with pytest.raises(SystemExit):
            tool.main(["--flops-per-second", speed])


CHANGES = {
    "a fraction": {"arms__spread__fraction": 0.2},
    "a new arm": {"arms__longest": {"method": "longest", "fraction": 0.1, "seed": 1}},
    "K": {"cluster__clusters": 5},
    "the seed of k-means": {"cluster__init": "k-means++"},
    "the scorer": {"fetch_model__scorer__small__steps": 3},
    "the encoder's settings": {"embed__max_tokens": 16},
    "the learning rate": {"train__learning_rate": 2.0e-4},
    "rows": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_the_forecast_is_what_then_runs(
    change: str, project: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpulled = clone(done, tmp_path / "unpulled")
    for folder in (project, unpulled):
        add_rows(folder, 5) if CHANGES[change] is None else change_params(folder, **CHANGES[change])
    plan, printed = forecast_in(unpulled, monkeypatch)
    assert forecast_in(project, monkeypatch) == (plan, printed)
    log = ""
    if MERGE_FIRST in printed:
        logs = [run(folder, *MERGE_FIRST.split()) for folder in (project, unpulled)]
        log, (_, printed) = logs[1], forecast_in(unpulled, monkeypatch)
        assert forecast_in(project, monkeypatch)[1] == printed
    arms = list(plan.will | plan.may)
    samples = [name for name in arms if name.startswith("sample@")]
    log += run(unpulled, *REPRO, *samples) if samples else ""
    trained, _ = forecast_in(unpulled, monkeypatch)  # with the samples made, it is known which arms train
    log += run(unpulled, *REPRO)
    done_stages = ran(log)
    print(f"\n{change}: will {sorted(plan.will)}, may {len(plan.may)}, ran {sorted(done_stages)}\n{printed}")
    assert set(plan.will) <= done_stages <= {*plan.will, *plan.may}
    assert texts_computed(log) == texts_in(printed)
    assert {f"train@{arm}" for arm in trained.named("train")} == {
        one for one in done_stages if one.startswith("train@")
    }
    assert set(trained.named("train")) <= set(plan.named("train"))
    commit(unpulled, "reproduced")
    assert forecast_in(unpulled, monkeypatch)[0] == Plan({}, {})
