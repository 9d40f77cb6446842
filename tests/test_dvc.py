"""What reruns and what does not, in real clones with real DVC, on the default with its training cut to two steps.

`dvc repro --dry` names the stages whose own deps or params changed, and not those below them. So where a change is real
down to `sample`, the expensive stages below are planned by it: what is not named then has unchanged inputs.
"""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.project import UP_TO_DATE, change_params, commit, copy_project, ran, run, shrink

ARMS = {"spread", "steady", "random", "full"}
STAGE = re.compile(r"^  (\S+):\n((?:    .*\n)+)", re.MULTILINE)  # of dvc.lock


def each(stage: str, arms: set[str] = ARMS) -> set[str]:
    return {f"{stage}@{arm}" for arm in arms}


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunken project as a git repository that nobody ran, with a team's remote."""
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
    """Two fresh clones, reproduced side by side; the second as far as the control."""
    clones = [clone(origin, tmp_path_factory.mktemp("clone") / name) for name in ("one", "two")]
    targets: list[list[str]] = [[], ["compare@random"]]
    with ThreadPoolExecutor() as pool:  # the second by real starts, whose hash seeds differ
        one, two = pool.map(
            lambda f, words, forked: run(f, "dvc", "repro", *words, forked=forked), clones, targets, (1, 0)
        )
    assert each("train") | {"report"} <= ran(one)
    assert {"ppl", "embed", "train@random", "evaluate@random", "compare@random"} <= ran(two)
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
    """The reproduced clone; what a test changes in it is undone."""
    yield done
    for path in (done / "params.yaml", *(done / "stages").rglob("*.py")):
        path.touch()  # a change of one second's age and of no size escapes git once dvc has staged its lock
    run(done, "git", "reset", "-q", "--hard")
    run(done, "git", "clean", "-fdq")
    run(done, "dvc", "checkout", "-q", "--force")


def test_two_fresh_clones_have_equal_locks_and_metrics(two_clones: list[Path]) -> None:
    one, two = ((folder / "dvc.lock").read_text() for folder in two_clones)
    first, second = (dict(STAGE.findall(lock)) for lock in (one, two))
    assert len(second) == 16
    assert second == {stage: first[stage] for stage in second}
    one, two = ((folder / "metrics/arms/random.json").read_bytes() for folder in two_clones)
    assert one == two


def test_a_run_leaves_nothing_in_git_but_the_lock_and_the_metrics(done: Path) -> None:
    changed = run(done, "git", "diff", "--name-only", "HEAD~1").splitlines()
    assert {name.split("/")[0] for name in changed} == {"dvc.lock", "metrics"}


def test_a_second_repro_does_nothing(project: Path) -> None:
    assert UP_TO_DATE in run(project, "dvc", "repro")


def test_a_changed_fraction_of_the_control_reruns_that_arm_and_every_comparison(project: Path) -> None:
    change_params(project, arms__random__fraction=0.2)
    wanted = {"sample@random", "train@random", "evaluate@random", *each("compare"), "report"}
    assert ran(run(project, "dvc", "repro")) == wanted


def test_a_changed_k_retrains_only_the_arms_whose_rows_changed(project: Path) -> None:
    change_params(project, cluster__clusters=5)
    assert ran(run(project, "dvc", "repro", *each("sample"))) == {"cluster", "candidates", *each("sample")}
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert planned == {"stability", "profile", *each("train", {"spread", "steady"}), *each("compare"), "report"}


def test_a_changed_scorer_reruns_it_and_below_but_not_embed(project: Path) -> None:
    change_params(project, fetch_model__scorer__small__steps=3)
    assert ran(run(project, "dvc", "repro", "ppl")) == {"fetch_model@scorer", "ppl"}
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert planned == {"model_size@scorer", "candidates"}


def test_a_changed_ppl_setting_reruns_ppl_and_below_but_not_embed(project: Path) -> None:
    change_params(project, ppl__add_bos=True)
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert planned == {"ppl"}


def test_one_added_input_row_reruns_fetch_and_below_but_no_fetch_model(project: Path) -> None:
    row = {
        "instruction": "겨울철 창문에 물방울이 맺히는 까닭을 알려 주세요.",
        "output": "따뜻한 공기가 식기 때문입니다.",
    }
    with (project / "data/inputs/life.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    wanted = {"fetch", "merge", "decontaminate", "ppl", "embed", "cluster", "candidates", *each("sample")}
    assert ran(run(project, "dvc", "repro", *each("sample"))) == wanted
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert {"train@full", "profile", "stability", *each("compare"), "report"} <= planned
    assert not any(name.startswith("fetch_model") for name in planned)


def test_a_comment_reruns_its_stage_and_nothing_below(project: Path) -> None:
    for stage in ("cluster", "merge"):
        with (project / f"stages/{stage}.py").open("a", encoding="utf-8") as file:
            file.write("# A remark that changes no byte of the output.\n")
        assert ran(run(project, "dvc", "repro")) == {stage}


def test_a_changed_learning_rate_reruns_training_and_what_is_below(project: Path) -> None:
    change_params(project, train__learning_rate=2.0e-4)
    assert ran(run(project, "dvc", "repro", "--dry")) == each("train")


def test_another_base_model_reruns_training_and_evaluation_but_no_selection(project: Path) -> None:
    change_params(project, fetch_model__base__small__seed=5)
    assert ran(run(project, "dvc", "repro", "fetch_model@base")) == {"fetch_model@base"}
    planned = ran(run(project, "dvc", "repro", "--dry"))
    assert planned == {"model_size@base", "evaluate_base", *each("train"), *each("evaluate")}


def test_another_encoder_reruns_embed_and_below_but_not_ppl(project: Path) -> None:
    change_params(project, fetch_model__encoder__small__seed=5)
    assert ran(run(project, "dvc", "repro", "embed")) == {"fetch_model@encoder", "embed"}
    assert ran(run(project, "dvc", "repro", "--dry")) == {"model_size@encoder", "cluster", "stability"}


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_new_section_reruns_nothing(project: Path) -> None:
    append(project / "params.yaml", "\ndedup: {threshold: 0.9}\n")
    assert UP_TO_DATE in run(project, "dvc", "repro")


ADDITIONS = {
    "a method": ("selection/methods.py", 'METHODS["shortest"] = METHODS["longest"]\n'),
    "a metric": ("evaluation/metrics.py", 'METRICS["accuracy_again"] = METRICS["accuracy"]\n'),
    "a format": ("text/formats/mine.json", '{"system": "", "before": "Q: ", "after": "\\nA: "}\n'),
    "a reader": ("text/readers.py", "NEW = None\n"),
    "a way to embed": ("scoring/embedding.py", "NEW = None\n"),
}
RERUN = {
    "a method": {
        *each("sample"),
        "candidates",
        "profile",
        "cluster",
        "stability",
        *each("compare"),
        "compare_base",
        "report",
    },
    "a metric": {"fetch_benchmark", "decontaminate", *each("compare"), "compare_base", "report"},
    "a format": {"merge", "cluster", "decontaminate", "candidates", "profile", "stability", *each("sample")},
    "a reader": {"merge", "cluster", "decontaminate", "candidates", "profile", "stability", *each("sample")},
    "a way to embed": {"embed"},
}
"""The most that each addition may rerun: stages of about a second, and no other."""


@pytest.mark.parametrize("addition", ADDITIONS)
def test_an_addition_to_a_wing_retrains_and_evaluates_nothing(project: Path, addition: str) -> None:
    file, text = ADDITIONS[addition]
    append(project / "stages/lib" / file, text)
    assert ran(run(project, "dvc", "repro", "--dry")) <= RERUN[addition]


def test_a_change_in_the_core_reruns_every_stage_and_changes_no_output(project: Path) -> None:
    def outs_of_every_stage() -> list[str]:
        return re.findall(r"  outs:\n((?:  - .*\n|    .*\n)+)", (project / "dvc.lock").read_text())

    before = outs_of_every_stage()
    append(project / "stages/lib/core/progress.py", "# A remark that changes no byte of an output.\n")
    stages = set(run(project, "dvc", "stage", "list", "--name-only").split())
    assert ran(run(project, "dvc", "repro")) == stages
    assert outs_of_every_stage() == before
    assert set(run(project, "git", "diff", "--name-only").split()) == {"dvc.lock", "stages/lib/core/progress.py"}


def test_a_teammate_who_pulls_reruns_nothing_and_has_a_clean_tree(done: Path, tmp_path: Path) -> None:
    mate = clone(done, tmp_path / "mate")
    run(mate, "dvc", "pull", "-q")
    assert UP_TO_DATE in run(mate, "dvc", "repro")
    assert run(mate, "git", "status", "--porcelain") == ""
    assert (mate / "dvc.lock").read_bytes() == (done / "dvc.lock").read_bytes()


def test_an_unpulled_clone_is_up_to_date_and_runs_one_changed_arm_alone(done: Path, tmp_path: Path) -> None:
    mate = clone(done, tmp_path / "mate")
    assert UP_TO_DATE in run(mate, "dvc", "repro", "--allow-missing", "--dry")
    change_params(mate, arms__spread__fraction=0.2)
    wanted = {"sample@spread", "train@spread", "evaluate@spread", "compare@spread", "report"}
    assert ran(run(mate, "dvc", "repro", "--pull", "--allow-missing")) == wanted
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


def test_added_rows_alone_are_scored_here_and_in_clones_pulled_or_not(done: Path, tmp_path: Path) -> None:
    for name in ("here", "pulled", "unpulled"):
        folder = clone(done, tmp_path / name)
        run(folder, "dvc", "remote", "default", "-q", "team")
        if name == "pulled":
            run(folder, "dvc", "pull", "-q")
        add_rows(folder, 5)
        log = run(folder, "dvc", "repro", "--pull", "--allow-missing", "ppl", "embed")
        assert ran(log) == {"fetch", "merge", "ppl", "embed"}
        assert computed(log) == [5, 5]
    outs = [(tmp_path / name / "dvc.lock").read_bytes() for name in ("here", "pulled", "unpulled")]
    assert len(set(outs)) == 1
    add_rows(folder, 2, start=5)  # the store alone knows the five, for they are not committed
    assert computed(run(folder, "dvc", "repro", "--pull", "--allow-missing", "ppl", "embed")) == [2, 2]


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


def test_a_damaged_score_in_the_cache_is_noticed_and_computed_again(project: Path) -> None:
    shutil.rmtree(project / ".checkpoints", ignore_errors=True)
    cached = (project / "data/ppl.parquet").read_bytes()
    (path,) = [p for p in (project / ".dvc/cache").rglob("*") if p.is_file() and p.read_bytes() == cached]
    path.chmod(0o644)
    path.write_bytes(cached[:500] + bytes([cached[500] ^ 1]) + cached[501:])
    add_rows(project, 3, start=100)  # others than before, else the run-cache restores the output
    log = run(project, "dvc", "repro", "ppl")
    path.write_bytes(cached)
    assert "data/ppl.parquet is damaged in the cache or the remote" in log
    assert computed(log)[0] > 800


def test_other_arms_need_no_change_of_dvc_yaml_and_the_stale_file_is_named(project: Path) -> None:
    change_params(project, arms={"highest": {"method": "highest", "fraction": 0.1, "seed": 1}}, control="highest")
    log = run(project, "dvc", "repro")
    assert ran(log) == {*each("sample", {"highest"}), "train@highest", "evaluate@highest", "compare@highest", "report"}
    assert (
        "git rm metrics/arms/full.json metrics/arms/random.json metrics/arms/spread.json metrics/arms/steady.json"
        in log
    )
    assert set(json.loads((project / "metrics/summary.json").read_text())["arms"]) == {"highest"}


def test_without_arms_the_base_alone_is_evaluated(project: Path) -> None:
    change_params(project, arms={}, control=None)
    assert ran(run(project, "dvc", "repro")) == {"report"}


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
    commit(folder, "the base alone")
    change_params(folder, evaluate__quantize="nf4")
    assert ran(run(folder, "dvc", "repro")) == {"evaluate_base", "compare_base", "report"}
    changes = json.loads(run(folder, "dvc", "metrics", "diff", "--json"))["metrics/summary.json"]
    assert "base.scores.0-shot.mean.accuracy" in changes
    assert {name.split(".")[0] for name in changes} == {"base"}
    assert all(abs(change["diff"]) < 0.2 for change in changes.values())


@pytest.mark.parametrize(
    ("changes", "stage", "words"),
    [
        ({"control": "nope"}, "sample@spread", "control: 'nope' is not an arm"),
        ({"arms__spread__fraction": 2}, "sample@spread", "arms.spread.fraction"),
        (
            {"merge__drop__emptyy": True, "merge__drop__duplicate": 1},
            "merge",
            "merge.drop.duplicate: should be a valid boolean (got 1)\n  merge.drop.emptyy: unknown key",
        ),
    ],
)
def test_a_wrong_value_stops_before_anything_is_trained(project: Path, changes: dict, stage: str, words: str) -> None:
    change_params(project, **changes)
    log = run(project, "dvc", "repro", stage, code=255)
    assert words in log
    assert not any(name.startswith(("train", "fetch_model")) for name in ran(log))
    assert "Traceback" not in log
