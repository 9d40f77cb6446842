"""What reruns and what does not, in real clones with real DVC, on the default data with training cut to two steps.

`dvc repro --dry` names the stages whose own deps or params changed, but not the stages below them. So some tests first
run the cheap stages, down to `sample`. The dry run after that names the expensive stages whose inputs really changed.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.clones import clone, each, stages_of
from tests.project import ARMS, UP_TO_DATE, change_params, ran, run

STAGE = re.compile(r"^  (\S+):\n((?:    .*\n)+)", re.MULTILINE)  # of dvc.lock


@pytest.mark.slow
def test_two_fresh_clones_have_equal_locks_and_metrics(done: Path, origin: Path, tmp_path: Path) -> None:
    other = clone(origin, tmp_path / "two")
    log = run(other, "dvc", "repro", "compare@random", forked=False)  # real starts, so that hash seeds differ
    assert {"ppl", "embed", "train@random", "evaluate@random", "compare@random"} <= ran(log)
    first, second = (dict(STAGE.findall((folder / "dvc.lock").read_text())) for folder in (done, other))
    assert len(second) == 21
    assert second == {stage: first[stage] for stage in second}
    one, two = ((folder / "metrics/arms/random.json").read_bytes() for folder in (done, other))
    assert one == two


def test_a_run_leaves_nothing_in_git_but_the_lock_and_the_metrics(done: Path) -> None:
    changed = run(done, "git", "diff", "--name-only", "HEAD~1").splitlines()
    assert {name.split("/")[0] for name in changed} == {"dvc.lock", "metrics"}


def test_a_second_repro_does_nothing(project: Path) -> None:
    assert UP_TO_DATE in run(project, "dvc", "repro")


@pytest.mark.slow
def test_a_changed_fraction_of_the_control_reruns_that_arm_and_every_comparison(project: Path) -> None:
    change_params(project, arms__random__fraction=0.2)
    wanted = {"audit", *stages_of("random"), *each("compare"), "report"}
    assert ran(run(project, "dvc", "repro")) == wanted


@pytest.mark.slow
def test_a_changed_k_retrains_only_the_arms_whose_rows_changed(project: Path) -> None:
    change_params(project, cluster__clusters=5)
    assert ran(run(project, "dvc", "repro", *each("sample"))) == {"cluster", "candidates", *each("sample")}
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert planned == {"stability", "profile", "audit", "train@spread", *each("compare")}


@pytest.mark.slow
def test_another_partition_retrains_no_arm_and_an_arm_moved_into_it_retrains_alone(project: Path) -> None:
    change_params(project, cluster__seeds=[1, 2, 3])
    assert ran(run(project, "dvc", "repro", *each("sample"))) == {"cluster", "candidates", *each("sample")}
    assert ran(run(project, "dvc", "repro", "--dry")) == {"stability", "profile", "audit"}
    change_params(project, arms__spread__partition=2)
    assert ran(run(project, "dvc", "repro", "sample@spread")) == {"sample@spread"}
    below = {"train@spread", "compare@spread", "report"}
    assert ran(run(project, "dvc", "repro", "--dry")) == {"stability", "profile", "audit", *below}


@pytest.mark.slow
def test_a_new_score_retrains_no_arm_and_an_arm_that_selects_by_it_is_trained_alone(project: Path) -> None:
    path = project / "stages/candidates.py"
    text = path.read_text(encoding="utf-8")
    for old, new in (
        ("""        ("characters", pa.int64()),\n""", """        ("words", pa.int64()),\n"""),
        ("""        reason=reason,\n""", """        words=corpus["output"].str.split().str.len(),\n"""),
    ):
        assert text.count(old) == 1
        text = text.replace(old, old + new)
    path.write_text(text, encoding="utf-8")
    assert ran(run(project, "dvc", "repro", *each("sample"))) == {"candidates", *each("sample")}
    assert ran(run(project, "dvc", "repro", "--dry")) == {"stability", "profile", "audit"}
    wordy = {"method": "highest", "by": "words", "fraction": 0.1, "seed": 1}
    change_params(project, arms__wordy=wordy)
    assert ran(run(project, "dvc", "repro", "sample@wordy")) == {"sample@wordy"}
    trained = each("train", [*ARMS, "wordy"])
    assert ran(run(project, "dvc", "repro", "--dry", *trained)) == {"train@wordy"}


@pytest.mark.slow
def test_a_changed_scorer_reruns_it_and_below_but_not_embed(project: Path) -> None:
    change_params(project, fetch_model__scorer__small__steps=3)
    assert ran(run(project, "dvc", "repro", "ppl")) == {"fetch_model@scorer", "ppl"}
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert planned == {"model_size@scorer", "rate", "candidates"}


def test_a_changed_ppl_setting_reruns_ppl_and_below_but_not_embed(project: Path) -> None:
    change_params(project, ppl__add_bos=True)
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert planned == {"ppl"}


@pytest.mark.slow
def test_one_added_input_row_reruns_fetch_and_below_but_no_fetch_model(project: Path) -> None:
    row = {
        "instruction": "겨울철 창문에 물방울이 맺히는 까닭을 알려 주세요.",
        "output": "따뜻한 공기가 식기 때문입니다.",
    }
    with (project / "data/inputs/life.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    wanted = {
        "fetch",
        "merge",
        "decontaminate",
        "ppl",
        "embed",
        "cluster",
        "dedup",
        "rate",
        "candidates",
        *each("sample"),
    }
    assert ran(run(project, "dvc", "repro", *each("sample"))) == wanted
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert {"train@full", "profile", "stability", "audit", *each("compare")} <= planned
    assert not any(name.startswith("fetch_model") for name in planned)


def test_a_comment_reruns_its_stage_and_nothing_below(project: Path) -> None:
    for stage in ("cluster", "merge"):
        with (project / f"stages/{stage}.py").open("a", encoding="utf-8") as file:
            file.write("# A remark that changes no byte of the output.\n")
        assert ran(run(project, "dvc", "repro")) == {stage}


def test_a_changed_learning_rate_reruns_training_and_what_is_below(project: Path) -> None:
    change_params(project, train__learning_rate=2.0e-4)
    assert ran(run(project, "dvc", "repro", "--dry")) == each("train")


@pytest.mark.slow
def test_another_base_model_reruns_training_and_evaluation_but_no_selection(project: Path) -> None:
    change_params(project, fetch_model__base__small__seed=5)
    assert ran(run(project, "dvc", "repro", "fetch_model@base")) == {"fetch_model@base"}
    planned = ran(run(project, "dvc", "repro", "--dry"))
    of_the_base = {"model_size@base", "evaluate_base", "generate_base"}
    assert planned == of_the_base | each("train") | each("evaluate") | each("generate")


@pytest.mark.slow
def test_another_encoder_reruns_embed_and_below_but_not_ppl(project: Path) -> None:
    change_params(project, fetch_model__encoder__small__seed=5)
    assert ran(run(project, "dvc", "repro", "embed")) == {"fetch_model@encoder", "embed"}
    assert ran(run(project, "dvc", "repro", "--dry")) == {
        *("model_size@encoder", "cluster", "dedup", "decontaminate", "stability"),
        *each("sample"),
    }


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_new_section_reruns_nothing(project: Path) -> None:
    append(project / "params.yaml", "\nnovelty: {threshold: 0.9}\n")
    assert UP_TO_DATE in run(project, "dvc", "repro")


ADDITIONS = {
    "a method": ("selection/methods.py", 'METHODS["shortest"] = METHODS["longest"]\n'),
    "a metric": ("evaluation/metrics.py", 'METRICS["accuracy_again"] = METRICS["accuracy"]\n'),
    "a format": ("text/formats/mine.jinja", "{#- Ours. -#}\n"),
    "a reader": ("reading/records.py", "NEW = None\n"),
    "a way to embed": ("scoring/embedding.py", "NEW = None\n"),
}
RERUN = {
    "a method": {
        *each("sample"),
        "candidates",
        "profile",
        "cluster",
        "decontaminate",
        "dedup",
        "stability",
        "audit",
        *each("compare"),
        "compare_base",
        "report",
    },
    "a metric": {"fetch_benchmark", "decontaminate", *each("compare"), "compare_base", "report"},
    "a format": {
        *("fetch", "merge", "cluster", "candidates", "decontaminate", "dedup", "stability", "audit", "report"),
        *each("sample"),
        *each("compare"),
        "compare_base",
    },
    "a reader": {"fetch", "merge"},
    "a way to embed": {"embed", "decontaminate"},
}
"""The most that each addition may rerun: stages of about a second, and no other."""


@pytest.mark.parametrize("addition", ADDITIONS)
def test_an_addition_to_a_wing_retrains_and_evaluates_nothing(project: Path, addition: str) -> None:
    file, text = ADDITIONS[addition]
    append(project / "stages/lib" / file, text)
    assert ran(run(project, "dvc", "repro", "--dry")) <= RERUN[addition]


@pytest.mark.slow
def test_a_change_in_the_core_reruns_every_stage_and_changes_no_output(project: Path) -> None:
    def outs_of_every_stage() -> list[str]:
        return re.findall(r"  outs:\n((?:  - .*\n|    .*\n)+)", (project / "dvc.lock").read_text())

    before = outs_of_every_stage()
    append(project / "stages/lib/core/progress.py", "# A remark that changes no byte of an output.\n")
    stages = set(run(project, "dvc", "stage", "list", "--name-only").split())
    assert ran(run(project, "dvc", "repro")) == stages
    assert outs_of_every_stage() == before
    assert set(run(project, "git", "diff", "HEAD", "--name-only").split()) == {
        "dvc.lock",
        "stages/lib/core/progress.py",
    }


@pytest.mark.slow
def test_other_arms_need_no_change_of_dvc_yaml_and_the_stale_file_is_named(project: Path) -> None:
    change_params(project, arms={"highest": {"method": "highest", "fraction": 0.1, "seed": 1}}, control="highest")
    log = run(project, "dvc", "repro")
    assert ran(log) == stages_of("highest") | {"audit", "compare_base", "report"}
    assert "git rm metrics/arms/full.json metrics/arms/random.json metrics/arms/spread.json" in log
    assert set(json.loads((project / "metrics/summary.json").read_text())["arms"]) == {"highest"}


def test_prune_drops_the_stages_of_a_removed_arm_from_the_lock_and_nothing_else(project: Path) -> None:
    blocks = STAGE.findall((project / "dvc.lock").read_text())
    arms = {name: arm | {"seed": 1} for name, arm in ARMS.items() if name != "spread"}
    change_params(project, arms=arms)
    log = run(project, sys.executable, "-m", "tools.prune")
    gone = re.findall("^dropped: (.*)$", log, re.MULTILINE)
    assert set(gone) == stages_of("spread")
    assert STAGE.findall((project / "dvc.lock").read_text()) == [one for one in blocks if one[0] not in gone]
    assert ran(run(project, "dvc", "repro", "--dry")) == {"audit", "report"}
    assert "0 stages dropped" in run(project, sys.executable, "-m", "tools.prune")


def test_without_arms_the_base_alone_is_evaluated(project: Path) -> None:
    change_params(project, arms={}, control=None)
    assert ran(run(project, "dvc", "repro")) == {"audit", "compare_base", "report"}


@pytest.mark.parametrize(
    ("changes", "stage", "words"),
    [
        ({"control": "nope"}, "sample@spread", "control: 'nope' is not an arm"),
        ({"arms__spread__fraction": 2}, "sample@spread", "arms.spread.fraction"),
        (
            {"merge__drop__emptyy": True, "merge__drop__foreign_script": 1},
            "merge",
            "merge.drop.foreign_script: should be a valid boolean (got 1)\n  merge.drop.emptyy: unknown key",
        ),
    ],
)
def test_a_wrong_value_stops_before_anything_is_trained(project: Path, changes: dict, stage: str, words: str) -> None:
    change_params(project, **changes)
    log = run(project, "dvc", "repro", stage, code=255)
    assert words in log
    assert not any(name.startswith(("train", "fetch_model")) for name in ran(log))
    assert "Traceback" not in log
