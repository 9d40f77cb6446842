"""The gates refuse a pull request that is worse, outdated, damaged or forged, and no other; they name what is wrong."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.lib.core.errors import UserError
from tests.clones import Team
from tests.mutations import F1, HARMLESS, LOSS, MUTATIONS, edit_a_metric, read_lock_of
from tests.project import commit, run
from tools import gates
from tools.gates import (
    EXPLAINED,
    GATES,
    LEAKED,
    LOCK,
    OWN,
    PUSHED,
    SAME,
    TRUE,
    Change,
    Printed,
    Result,
    exit_status,
    judge,
)
from tools.revisions import DamagedError, MissingError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], Change]]:
    """Go into a clone, and start what judges its HEAD."""
    with ThreadPoolExecutor() as pool:

        def start(folder: Path, base: str) -> Change:
            monkeypatch.chdir(folder)
            return gates.start_change(base, head_of(folder), pool)

        yield start


def head_of(folder: Path) -> str:
    return run(folder, "git", "rev-parse", "HEAD").strip()


ARMS_GATES = (gates.judge_macro_f1, gates.judge_loss)


def mutated(team: Team, folder: Path, name: str, seed: int, verify: bool = False) -> tuple[Path, str]:
    """Return an unpulled clone of the mutated pull request, and its base."""
    mutation = MUTATIONS[name]
    mate = team.unpulled(folder, mutation.own_remote, verify)
    base = mutation.apply(mate, random.Random(seed))
    return mate, base or team.base


def refusals(results: list[Result]) -> set[str]:
    return {result.gate for result in results if not result.holds}


def judged(change: Change, *names: str) -> list[Result]:
    """Return what some gates say; `judge` asks all of them."""
    kept = {name: gate for name, gate in GATES.items() if name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "GATES", kept)
        return judge(change)


CASES = [(name, False) for name, one in MUTATIONS.items() if not one.gates & {LOCK, PUSHED}] + [
    (name, True) for name in MUTATIONS if "flipped" in name
]


def change_after(name: str, mate: Path, base: str) -> Change:
    """Return a mutated pull request; DVC is asked only if its answer decides."""
    ask = {LOCK: gates.DRY_RUN, PUSHED: gates.UNPUSHED}
    answers = [future(gates.dvc(*ask[gate])) if gate in MUTATIONS[name].gates else printed(0) for gate in ask]
    return Change(base, head_of(mate), *answers)


def deciding(name: str) -> list[str]:
    """Return the gates that may refuse a mutation. If one does, no other can make up for it."""
    return [key for key, gate in GATES.items() if key in MUTATIONS[name].gates or gate in ARMS_GATES]


@pytest.mark.parametrize(("name", "verify"), CASES)
def test_a_mutation_is_refused_by_its_gate(name: str, verify: bool, team: Team, tmp_path: Path, monkeypatch) -> None:
    assert_refused(name, 1, verify, team, tmp_path, monkeypatch)


def assert_refused(name: str, seed: int, verify: bool, team: Team, folder: Path, monkeypatch) -> None:
    mate, base = mutated(team, folder, name, seed, verify)
    monkeypatch.chdir(mate)
    results = judged(change_after(name, mate, base), *deciding(name))
    assert MUTATIONS[name].gates & {result.gate for result in results if result.holds is False}, results
    assert exit_status(results) == 1


def test_a_lock_that_is_stale_is_refused(team: Team, tmp_path: Path, monkeypatch) -> None:
    mate, _ = mutated(team, tmp_path, "a stale lock", 1)
    monkeypatch.chdir(mate)
    (result,) = judged(change_of(future(gates.dvc(*gates.DRY_RUN))), LOCK)
    assert result.holds is False
    assert "`dvc repro` would run" in result.note


def test_what_was_never_pushed_is_refused(team: Team, tmp_path: Path, monkeypatch) -> None:
    mate, _ = mutated(team, tmp_path, "an object that was never pushed", 1)
    monkeypatch.chdir(mate)
    (result,) = judged(change_of(printed(0), future(gates.dvc(*gates.UNPUSHED))), PUSHED)
    assert result.holds is False
    assert "`dvc push` " in result.note


def test_a_metric_that_was_committed_with_force_looks_current_and_is_refused(
    team: Team, tmp_path: Path, monkeypatch
) -> None:
    mate = team.unpulled(tmp_path)
    edit_a_metric(mate, random.Random(3))
    monkeypatch.chdir(mate)
    change = Change(team.base, head_of(mate), future(gates.dvc(*gates.DRY_RUN)), printed(0))
    results = judged(change, LOCK, TRUE)
    assert refusals(results) == {TRUE}
    assert "metrics/" in results[-1].note


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100))
def test_no_mutation_passes(number: int, team: Team, tmp_path: Path, monkeypatch) -> None:
    turn, place = divmod(number, len(MUTATIONS))
    assert_refused(list(MUTATIONS)[place], number, bool(turn % 2), team, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_harmless_change_passes(number: int, team: Team, tmp_path: Path, started) -> None:
    mate = team.unpulled(tmp_path)
    list(HARMLESS.values())[number % len(HARMLESS)](mate, random.Random(number))
    commit(mate, "harmless")
    results = judge(started(mate, team.base))
    assert refusals(results) == set()
    assert exit_status(results) == 0


@pytest.mark.slow
def test_a_metric_forged_by_dvc_itself_has_the_lock_that_the_mutations_write(team: Team, tmp_path: Path) -> None:
    one, other = (shutil.copytree(team.author, tmp_path / name, symlinks=True) for name in ("one", "other"))
    edit_a_metric(one, random.Random(3))
    for path in ("metrics/summary.json", "metrics/arms/spread.json", "metrics/arms/random.json"):
        shutil.copyfile(one / path, other / path)
    run(other, "dvc", "commit", "-f", "-q")
    assert run(one, "dvc", "repro", "--dry").endswith("Data and pipelines are up to date.\n")
    assert read_lock_of(one) == read_lock_of(other)


@pytest.mark.slow
def test_a_real_leaked_row_is_refused(team: Team, tmp_path: Path, started) -> None:
    author = shutil.copytree(team.author, tmp_path / "author", symlinks=True)
    item = json.loads((author / "data/benchmark/copa/test.jsonl").read_text(encoding="utf-8").splitlines()[0])
    row = {"instruction": item["premise"] + " " + item["alternative_1"], "output": item["alternative_2"]}
    with (author / "data/inputs/assistant.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    run(author, "dvc", "repro")
    commit(author, "a row with an item of the test")
    run(author, "dvc", "push", "-q")
    results = judge(started(author, team.base))
    assert refusals(results) == {LEAKED}
    assert "copa test 0" in next(result.note for result in results if result.gate == LEAKED)


def future(result: Printed) -> Future[Printed]:
    found: Future[Printed] = Future()
    found.set_result(result)
    return found


def printed(status: int, out: str = "", error: str = "") -> Future[Printed]:
    return future(Printed(status, out, error))


def change_of(dry_run: Future[Printed], unpushed: Future[Printed] | None = None) -> Change:
    return Change("base", "head", dry_run, unpushed or printed(0, "{}"))


def test_the_stages_that_would_run_are_named() -> None:
    (result,) = gates.judge_lock(change_of(printed(0, "Running stage 'ppl':\n> python\nUse `dvc push`\n")))
    assert (result.holds, result.note) == (False, "`dvc repro` would run ppl")


def test_a_dry_run_that_fails_is_no_current_lock() -> None:
    (result,) = gates.judge_lock(change_of(printed(255, f"{gates.CURRENT}\n", "ERROR: dvc.yaml is broken\n")))
    assert (result.holds, result.note) == (False, "ERROR: dvc.yaml is broken")


def test_a_remote_that_does_not_answer_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "require_remote", lambda: None)
    (result,) = judged(change_of(printed(0), printed(255, "", "ERROR: no route to host\n")), PUSHED)
    assert (result.holds, result.note) == (None, "the remote cannot be read: ERROR: no route to host")
    assert exit_status([result]) == 2


def test_without_a_remote_nothing_counts_as_pushed(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(origin), str(folder))
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    monkeypatch.chdir(folder)
    (result,) = judged(change_of(printed(0)), PUSHED)
    assert result.holds is None
    assert "no remote is set" in result.note


@pytest.mark.parametrize(
    ("holds", "status"), [([True, True], 0), ([True, None], 2), ([True, False], 1), ([None, False], 1), ([], 0)]
)
def test_a_broken_gate_is_1_and_one_that_cannot_be_judged_2(holds: list[bool | None], status: int) -> None:
    assert exit_status([Result("gate", "", "", "", one) for one in holds]) == status


ESTIMATE = {"est": 0.0, "lo": -0.1, "hi": 0.1}


def summary_of(loss: object, f1: object) -> dict:
    return {
        "arms": {
            "spread": {"vs_control": {"held_out_loss": {"all": loss}, "scores": {"0-shot": {"mean": {"macro_f1": f1}}}}}
        }
    }


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what both commits have."""

    def have(limits: dict, here: object, before: object = None) -> None:
        params = {"arms": {"spread": {}, "random": {}}, "control": "random", "gates": limits}
        monkeypatch.setattr(gates, "params_at", lambda _: params)
        monkeypatch.setattr(gates, "summary_at", lambda revision: here if revision == "head" else before or here)

    return have


LIMITS = {"macro_f1": {"spread": -0.2}, "held_out_loss": {"spread": 0.2}, "new_leaked_items": 0}
NAMES = ("difference in mean macro-F1", "difference in held-out loss")


@pytest.mark.parametrize(
    ("f1", "loss", "broken"), [(-0.2, 0.2, set()), (-0.1, 0.2, {F1}), (-0.2, 0.1, {LOSS}), (0.0, 0.0, {F1, LOSS})]
)
def test_an_interval_that_touches_its_limit_breaks_the_gate(f1: float, loss: float, broken: set[str], at) -> None:
    at(LIMITS | {"macro_f1": {"spread": f1}, "held_out_loss": {"spread": loss}}, summary_of(ESTIMATE, ESTIMATE))
    assert refusals(judged(change_of(printed(0)), *NAMES)) == broken


@pytest.mark.parametrize(
    "forged",
    [None, [], {"arms": []}, summary_of(None, None), summary_of({"est": 0}, "good"), {"methods": {"spread": 1}},
     summary_of({"est": 0.0, "lo": float("nan"), "hi": float("nan")}, {"est": 0.0, "lo": float("nan"), "hi": 0.0})],
)  # fmt: skip
def test_a_summary_without_the_difference_does_not_pass(forged: object, at) -> None:
    at(LIMITS, forged, summary_of(ESTIMATE, ESTIMATE))
    results = judged(change_of(printed(0)), *NAMES)
    assert refusals(results) == {F1, LOSS}


def test_the_difference_over_runs_counts_before_the_one_over_items(at) -> None:
    over_runs = summary_of({"est": 0.0, "lo": -9.0, "hi": 9.0}, ESTIMATE)["arms"]
    at(LIMITS, summary_of(ESTIMATE, ESTIMATE) | {"methods": over_runs})
    assert refusals(judged(change_of(printed(0)), *NAMES)) == {LOSS}


def test_several_runs_cannot_become_one_so_that_a_narrower_interval_counts(at) -> None:
    one_run = summary_of(ESTIMATE, ESTIMATE)
    at(LIMITS, one_run, one_run | {"methods": one_run["arms"]})
    results = judged(change_of(printed(0)), *NAMES)
    assert [result.holds for result in results] == [False, False]
    assert "the base compares several runs of spread" in results[0].note


@pytest.mark.parametrize(
    ("stage", "path", "holds"),
    [("ghost", "data/leaks.parquet", False), ("evaluate@old", "data/eval/spread", False),
     ("train@removed", "data/train/removed.parquet", True), ("train", "data/train/spread.json", True)],
)  # fmt: skip
def test_what_is_read_back_belongs_to_a_stage_of_the_pipeline(
    stage: str, path: str, holds: bool, at, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(LIMITS, summary_of(ESTIMATE, ESTIMATE))
    monkeypatch.setattr(gates, "pipeline_stages", lambda: {"train"})
    monkeypatch.setattr(gates, "read_lock", lambda _: {"stages": {stage: {"outs": [{"path": path, "md5": "a"}]}}})
    (result,) = judged(change_of(printed(0)), OWN)
    assert result.holds is holds
    assert holds or f"{path} of {stage}" in result.note


@pytest.mark.parametrize(
    ("changes", "config", "holds"),
    [({}, b"", True), ({"arms": {}, "train": {"seed": 2}}, b"", True), ({"control": "other"}, b"", None),
     ({"merge": {"sources": [], "held_out": {"seed": 2}}}, b"", None), ({}, b"another remote", None)],
)  # fmt: skip
def test_other_settings_of_the_judging_need_a_person(
    changes: dict, config: bytes, holds: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"arms": {"spread": {}}, "control": "random", "merge": {"sources": [], "held_out": {"seed": 1}}}
    monkeypatch.setattr(gates, "params_at", lambda revision: base | (changes if revision == "head" else {}))
    monkeypatch.setattr(gates, "git_at", lambda _, revision: config if revision == "head" else b"")
    (result,) = judged(change_of(printed(0)), SAME)
    assert result.holds is holds
    assert holds or "a person must decide" in result.note


@pytest.mark.parametrize(("deps", "holds"), [("a", None), ("b", True)])
def test_other_outputs_from_equal_inputs_need_a_person(
    deps: str, holds: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(revision: str) -> dict:
        md5s = (deps, "y") if revision == "head" else ("a", "x")
        dep, out = ([{"path": path, "md5": md5}] for path, md5 in zip(("code", "data/eval/spread"), md5s, strict=True))
        return {"stages": {"evaluate@spread": {"cmd": "evaluate", "deps": dep, "outs": out}}}

    monkeypatch.setattr(gates, "read_lock", lock)
    (result,) = judged(change_of(printed(0)), EXPLAINED)
    assert result.holds is holds
    assert holds or "evaluate@spread" in result.note


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (LIMITS | {"licence": 1}, "gates.licence: unknown key"),
        (LIMITS | {"macro_f1": {"sprad": 0.1}}, "sprad: not an arm that is compared with the control"),
        (LIMITS | {"macro_f1": {"random": 0.1}}, "random: not an arm that is compared with the control"),
        ({"macro_f1": {}}, "gates.held_out_loss: missing"),
    ],
)
def test_gates_that_cannot_be_read_are_no_pass(limits: dict, words: str, at) -> None:
    at(limits, summary_of(ESTIMATE, ESTIMATE))
    results = judged(change_of(printed(0)), *NAMES, LEAKED)
    assert [result.holds for result in results] == [None, None, None]
    assert words in results[0].note


def test_a_base_without_gates_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "params_at", lambda _: {"arms": {}, "control": None})
    (result,) = judged(change_of(printed(0)), NAMES[0])
    assert result.holds is None
    assert "has no gates at the base" in result.note


@pytest.mark.parametrize(
    ("error", "holds"),
    [(DamagedError("x is damaged"), False), (MissingError("x is missing"), None), (KeyError("x"), None)],
)
def test_a_gate_that_fails_has_not_passed(
    error: Exception, holds: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_change: Change) -> Iterator[Result]:
        raise error

    monkeypatch.setattr(gates, "GATES", {"a gate": fail})
    (result,) = judge(change_of(printed(0)))
    assert (result.gate, result.holds) == ("a gate", holds)
    assert "x" in result.note


def test_every_file_that_changed_and_every_small_one_is_read_back_but_none_of_a_removed_arm() -> None:
    def lock(**files: tuple[str, int]) -> dict:
        outs = [{"path": f"data/{name}", "md5": md5, "size": size} for name, (md5, size) in files.items()]
        return {"stages": {"one": {"outs": [*outs, {"path": "models/m", "md5": "m", "size": 1}]}}}

    large = gates.LARGE + 1
    before = lock(raw=("a", large), small=("b", 1), new=("c", large), folder=("d.dir", 1))
    here = lock(raw=("a", large), small=("b", 1), new=("x", large), folder=("d.dir", 1))
    here["stages"]["sample@removed"] = lock(old=("e", 1))["stages"]["one"]
    assert gates.files_to_read(here, before, {"one"}) == ["data/small", "data/new"]


def test_a_damaged_summary_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "read_at", lambda *_: b"{")
    with pytest.raises(UserError, match=r"metrics/summary\.json at abc: not JSON"):
        gates.summary_at("abc")
