"""The gates of a pull request: its results keep the limits, and its files are what its stages wrote.

The limits are `gates` in params.yaml **at the base** of the pull request, so that it cannot change what judges it. A
gate is one entry of GATES: it yields results, or raises UserError if it cannot judge. Then it has not passed.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError, model_validator
from ruamel.yaml.error import YAMLError

from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, Count, Section, describe
from stages.lib.scoring.committed import open_project
from tools.lock_diff import Reran, compare_locks
from tools.markdown import limited
from tools.pipeline import pipeline_stages
from tools.recompute import METRICS, false_metrics, inputs_of
from tools.revisions import DamagedError, MissingError, git_at, read_at, read_lock, table_at, yaml_at

SUMMARY = METRICS / "summary.json"
LEAKS = "data/leaks.parquet"
STALE = re.compile(r"(?:^Running stage|failed to reproduce) '([^']+)'", re.MULTILINE)
CURRENT = "Data and pipelines are up to date."
DRY_RUN = ("repro", "--allow-missing", "--dry")
UNPUSHED = ("data", "status", "--not-in-remote", "--granular", "--json")
REMOTES = ".dvc/config"
JUDGING = [("control",), ("compare",), ("evaluate",), ("fetch_benchmark",), ("decontaminate",), ("merge", "held_out")]
"""The params that the numbers of a gate depend on, whatever is selected and trained."""
LARGE = 2**27
"""Bytes of the largest file that is read back even if the pull request did not change it."""
SHOWN = 3
Estimate = dict[str, float]


class Gates(Section):
    """Limits for the results of a pull request."""

    macro_f1: dict[str, float]
    """By arm: the lower end of its difference to the control in mean macro-F1 must be above this."""
    held_out_loss: dict[str, float]
    """By arm: the upper end of its difference to the control in held-out loss must be below this."""
    new_leaked_items: Count
    """At most this many benchmark items may be in rows here and in no row at the base. Dropped rows count too."""


class Params(Section):
    arms: dict[str, Any]
    control: str | None
    gates: Gates
    """The limits by which `python -m tools.pr_report` judges a pull request, read at its base."""

    @model_validator(mode="after")
    def gates_name_arms(self) -> "Params":
        limits = self.gates.macro_f1 | self.gates.held_out_loss
        if unknown := sorted(arm for arm in limits if arm not in self.arms or arm == self.control):
            raise ValueError(f"gates: {', '.join(unknown)}: not an arm that is compared with the control")
        return self


class Printed(NamedTuple):
    """What a command printed."""

    status: int
    out: str
    error: str


class Change(NamedTuple):
    """A pull request. DVC takes seconds to start, so its commands run while other gates judge."""

    base: str
    """The commit from which it branched off."""
    head: str
    dry_run: Future[Printed]
    unpushed: Future[Printed]


class Result(NamedTuple):
    gate: str
    limit: str
    base: str
    here: str
    holds: bool | None
    """None: it cannot be judged."""
    note: str = ""


def start_change(base: str, head: str, pool: ThreadPoolExecutor) -> Change:
    return Change(base, head, *(pool.submit(dvc, *words) for words in (DRY_RUN, UNPUSHED)))


def dvc(*words: str) -> Printed:
    done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, check=False)
    return Printed(done.returncode, done.stdout, done.stderr)


def judge(change: Change) -> list[Result]:
    """Return the results of every gate. One that raises has not passed, because a forged file can break any reader."""
    found: list[Result] = []
    for name, gate in GATES.items():
        try:
            found += gate(change)
        except UserError as error:
            found.append(Result(name, "", "", "", False if isinstance(error, DamagedError) else None, str(error)))
        except Exception as error:
            found.append(Result(name, "", "", "", None, f"{type(error).__name__}: {error}"))
    return found


def exit_status(results: list[Result]) -> int:
    """Return 1 if a gate is broken, 2 if none is but one cannot be judged, otherwise 0."""
    verdicts = {result.holds for result in results}
    return 1 if False in verdicts else 2 if None in verdicts else 0


def judge_macro_f1(change: Change) -> Iterator[Result]:
    """Judge the lower end of every gated arm's difference to the control; of several shots, the lowest counts."""
    for arm, limit in limits_of(change.base).macro_f1.items():
        yield judge_arm(change, f"{arm} − control, mean macro-F1, lower end", arm, lowest_macro_f1, ("lo", limit))


def judge_loss(change: Change) -> Iterator[Result]:
    for arm, limit in limits_of(change.base).held_out_loss.items():
        yield judge_arm(change, f"{arm} − control, held-out loss, upper end", arm, held_out_loss, ("hi", limit))


def judge_arm(
    change: Change, gate: str, arm: str, score: Callable[[Any], Estimate | None], end: tuple[str, float]
) -> Result:
    """Judge one end of an interval: `lo` must be above the limit, `hi` below it."""
    name, limit = end
    summaries = summary_or_none(change.base), summary_at(change.head)
    before, here = (score(vs_control(summary, arm)) for summary in summaries)
    note = f"{SUMMARY} has no such difference for {arm}; is it still an arm?" if here is None else ""
    had_runs, has_runs = (value_at(summary, "methods", arm) is not None for summary in summaries)
    if had_runs and not has_runs:  # an interval over items can be narrower than the one over runs and items
        here, note = None, f"the base compares several runs of {arm} and of the control; keep two or more of each"
    texts = [interval(one) for one in (before, here)]
    holds = here is not None and (here["lo"] > limit if name == "lo" else here["hi"] < limit)
    return Result(gate, f"{'above' if name == 'lo' else 'below'} {limit:+.3f}", *texts, holds, note)


def judge_leaks(change: Change) -> Iterator[Result]:
    limit = limits_of(change.base).new_leaked_items
    before, here = (leaked_items(revision) for revision in (change.base, change.head))
    new = sorted(here - before)
    texts = [f"{task} {split} {item}" for task, split, item in new]
    yield Result(
        LEAKED, f"at most {limit}", str(len(before)), f"{len(here)}, new {len(new)}", len(new) <= limit, first(texts)
    )


def judge_lock(change: Change) -> Iterator[Result]:
    """Judge whether dvc.lock fits code, params and data.

    DVC names only the stages that changed themselves, and in an unpulled clone it fails at the first of them.
    """
    printed = change.dry_run.result()
    lines = (printed.out + printed.error).strip().splitlines()
    holds = printed.status == 0 and bool(lines) and lines[-1] == CURRENT
    stages = list(dict.fromkeys(STALE.findall("\n".join(lines))))
    yield yes_or_no(LOCK, holds, f"`dvc repro` would run {first(stages)}" if stages else last(lines))


def judge_remote(change: Change) -> Iterator[Result]:
    require_remote()
    printed = change.unpushed.result()
    if printed.status:
        raise UserError(f"the remote cannot be read: {last(printed.error.strip().splitlines())}")
    missing = json.loads(printed.out).get("not_in_remote", [])
    yield yes_or_no(PUSHED, not missing, f"`dvc push` {first(missing)}")


def require_remote() -> None:
    """Raise UserError if the project has no default remote: DVC then finds nothing missing."""
    if not open_project(Path.cwd()).config["core"].get("remote"):
        raise UserError("no remote is set, so nobody else can have the data; `dvc remote default NAME`")


def judge_bytes(change: Change) -> Iterator[Result]:
    """Judge whether the files of data/ have the md5 that dvc.lock names: DVC itself trusts its remote."""
    damaged = []
    for path in files_to_read(read_lock(change.head), lock_or_none(change.base), pipeline_stages()):
        try:
            read_at(path, change.head)
        except DamagedError:
            damaged.append(path)
    yield yes_or_no(
        WHOLE, not damaged, f"damaged: {first(damaged)}; delete these objects on the remote, and push them again"
    )


def judge_owners(change: Change) -> Iterator[Result]:
    """Judge whether all that is read back was written by a stage of dvc.yaml: of others, dvc.lock may say anything."""
    stages, here = pipeline_stages(), params_at(change.head)
    read = {Path(LEAKS), *inputs_of(list(here["arms"]), list(here.get("prefer", {})))}
    foreign = [
        f"{out['path']} of {name}"
        for name, stage in read_lock(change.head)["stages"].items()
        for out in stage.get("outs", [])
        if name not in stages and any(path.is_relative_to(out["path"]) for path in read)
    ]
    note = f"{first(foreign)}: dvc.yaml has no such stage; `python -m tools.prune` drops it from dvc.lock"
    yield yes_or_no(OWN, not foreign, note)


def judge_settings(change: Change) -> Iterator[Result]:
    """Judge nothing if the pull request changes what its numbers depend on: a person must then compare them."""
    before, here = (params_at(revision) for revision in (change.base, change.head))
    names = [".".join(keys) for keys in JUDGING if value_at(before, *keys) != value_at(here, *keys)]
    if git_at(REMOTES, change.base) != git_at(REMOTES, change.head):
        names.append(REMOTES)
    note = f"{first(names)}: its numbers are not those that the limits were set for; a person must decide"
    yield yes_or_no(SAME, not names, note)._replace(holds=not names or None)


def judge_outputs(change: Change) -> Iterator[Result]:
    """Judge nothing if a stage has other outputs than at the base although nothing that it reads has changed."""
    names = compare_stages(change).unexplained
    note = f"{first(names)}: edited, or computed on a machine that gives other bits; only running them again tells"
    yield yes_or_no(EXPLAINED, not names, note)._replace(holds=not names or None)


def judge_metrics(change: Change) -> Iterator[Result]:
    """Judge whether `compare` and `report` give the committed metrics when they run again."""
    false = false_metrics(change.head)
    yield yes_or_no(TRUE, not false, f"{first(false)}: computed again, they differ; run `dvc repro -f report`")


LEAKED = "benchmark items newly contained in rows"
LOCK = "dvc.lock is current"
PUSHED = "everything is on the remote"
WHOLE = "files read back are those of dvc.lock"
OWN = "dvc.lock has no stage that dvc.yaml lacks"
SAME = "judged by the settings of the base"
EXPLAINED = "equal inputs gave equal outputs"
TRUE = "metrics computed again are equal"
GATES: dict[str, Callable[[Change], Iterator[Result]]] = {
    "difference in mean macro-F1": judge_macro_f1,
    "difference in held-out loss": judge_loss,
    LEAKED: judge_leaks,
    LOCK: judge_lock,
    PUSHED: judge_remote,
    WHOLE: judge_bytes,
    OWN: judge_owners,
    SAME: judge_settings,
    EXPLAINED: judge_outputs,
    TRUE: judge_metrics,
}


def limits_of(base: str) -> Gates:
    """Return the gates at the base; raise UserError if it has none, or none that this version can read."""
    params = params_at(base)
    if "gates" not in params:
        raise UserError(f"{PARAMS} has no gates at the base, {base[:7]}; new ones apply once they are merged")
    try:
        return Params.model_validate({name: params.get(name) for name in Params.model_fields}).gates
    except ValidationError as error:
        listed = "; ".join(describe(item) for item in error.errors())
        raise UserError(f"{PARAMS} at the base, {base[:7]}: {listed}; correct them there first") from None


@cache
def params_at(revision: str) -> dict[str, Any]:
    try:
        params = yaml_at(str(PARAMS), revision)
    except YAMLError as error:
        raise UserError(f"{PARAMS} at {revision[:7]}: not YAML: {error}") from None
    if not isinstance(params, dict) or not isinstance(params.get("arms"), dict):
        raise UserError(f"{PARAMS} at {revision[:7]}: it has no sections, or no arms; run `python -m tools.check`")
    return params


@cache
def summary_at(revision: str) -> Any:
    """Return metrics/summary.json at a commit; raise UserError if it is missing or not JSON."""
    try:
        return json.loads(read_at(str(SUMMARY), revision))
    except ValueError:
        raise UserError(f"{SUMMARY} at {revision[:7]}: not JSON; run `dvc repro -f report`") from None


def summary_or_none(revision: str) -> Any:
    try:
        return summary_at(revision)
    except UserError:
        return None


def compare_stages(change: Change) -> Reran:
    """Return which stages ran since the base, and what they wrote."""
    return compare_locks(lock_or_none(change.base), read_lock(change.head))


def lock_or_none(revision: str) -> dict[str, Any]:
    try:
        return read_lock(revision)
    except MissingError:
        return {"stages": {}}


def value_at(content: Any, *names: str) -> Any:
    """Return what nested mappings have under these names, None if they do not have it. Files can be edited by hand."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def vs_control(summary: Any, arm: str) -> Any:
    """Return an arm's comparison with the control: over runs and items if it has several runs, else over items."""
    over_runs = value_at(summary, "methods", arm, "vs_control")
    return over_runs or value_at(summary, "arms", arm, "vs_control")


def lowest_macro_f1(found: Any) -> Estimate | None:
    """Return the difference in mean macro-F1; of several shots, the one with the lowest lower end."""
    by_shots = value_at(found, "scores")
    shots = by_shots.values() if isinstance(by_shots, dict) else []
    means = [is_estimate(value_at(tasks, "mean", "macro_f1")) for tasks in shots]
    return None if None in means else min(means, key=lambda one: one["lo"], default=None)


def held_out_loss(found: Any) -> Estimate | None:
    return is_estimate(value_at(found, "held_out_loss", "all"))


def is_estimate(found: Any) -> Estimate | None:
    return found if all(isinstance(value_at(found, name), float | int) for name in ("est", "lo", "hi")) else None


def interval(one: Estimate | None) -> str:
    return "–" if one is None else f"{one['est']:+.3f} [{one['lo']:+.3f}, {one['hi']:+.3f}]"


def leaked_items(revision: str) -> set[tuple[str, str, int]]:
    """Return the benchmark items that rows contain: task, split, item."""
    return set(table_at(LEAKS, revision, "task", "split", "item").itertuples(index=False, name=None))


def files_to_read(here: dict[str, Any], before: dict[str, Any], stages: Container[str]) -> list[str]:
    """Return the files of data/ that these stages wrote: those that changed, and others up to LARGE bytes."""
    here = {"stages": {name: stage for name, stage in here["stages"].items() if name in stages}}
    known = {out["path"]: out["md5"] for out in outs_of(before)}
    files = [out for out in outs_of(here) if out["path"].startswith("data/") and not out["md5"].endswith(".dir")]
    return [out["path"] for out in files if out["size"] <= LARGE or known.get(out["path"]) != out["md5"]]


def outs_of(lock: dict[str, Any]) -> list[dict[str, Any]]:
    return [out for stage in lock["stages"].values() for out in stage.get("outs", [])]


def yes_or_no(gate: str, holds: bool, note: str) -> Result:
    return Result(gate, "", "", "yes" if holds else "no", holds, "" if holds else note)


def first(items: list[str]) -> str:
    return limited(items, SHOWN)


def last(lines: list[str]) -> str:
    return lines[-1] if lines else "dvc printed nothing"
