"""Report on a pull request, and say whether it may be merged: `python -m tools.pr_report BASE`.

BASE is the branch to merge into, such as origin/main; the report compares HEAD with their merge base. It prints Markdown:
the verdict, the gates (`tools.gates`), what was changed, what ran again, what it cost, whether it helped, which rows came
and went, and why. Nothing has to be pulled. The exit status is 0 if every gate holds, 1 if one is broken, and 2 if none
is broken but one cannot be judged.
"""

import stages  # noqa: F401  # isort: skip  # sets what numpy reads when it is imported

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from stages.lib.core.errors import UserError
from tools.gates import (
    Change,
    Result,
    difference,
    dvc,
    exit_status,
    held_out_loss,
    interval,
    judge,
    lock_or_none,
    macro_f1,
    params_at,
    start_change,
    summary_at,
    summary_or_none,
    value_at,
)
from tools.lock_diff import Reran, compare_locks
from tools.markdown import code, folded, limited, plain, table
from tools.revisions import read_lock
from tools.selection_diff import SelectionDiff, selection_diff

MARKER = "<!-- dvc-report -->"
SIGNS = {True: "✅", False: "❌", None: "⚠️"}
LISTED, METRICS_LISTED, EXAMPLES = 12, 60, 10
JUDGING_PARAMS = ("gates", "control", "compare", "evaluate", "fetch_benchmark", "decontaminate")
JUDGING_CODE = (
    *("dvc.yaml", ".dvc/", ".ci/", ".github/", ".gitlab-ci.yml", "data/benchmark_inputs/", "tools/gates.py"),
    *("tools/recompute.py", "tools/revisions.py", "tools/pr_report.py", "stages/compare.py", "stages/report.py"),
    *("stages/evaluate.py", "stages/decontaminate.py", "stages/lib/evaluation/", "stages/lib/statistics/"),
)
"""What decides how a pull request is judged. A person must look at changes of these."""


class Reading(NamedTuple):
    """What several parts of the report need."""

    change: Change
    dag: Callable[[], str]
    before: Any
    """The summary at the base; None if it has none."""
    here: Any
    selections: dict[str, SelectionDiff | UserError]
    """By arm of HEAD that has the same name at the base."""


def report_lines(change: Change, dag: Callable[[], str]) -> tuple[list[str], int]:
    """Return the report and the exit status."""
    reading = read_all(change, dag)
    results = judge(change)
    lines = [MARKER, f"### {headline(results)}", "", commits(change), "", *gate_table(results), ""]
    for name, part in PARTS.items():
        lines += shown(name, part, reading)
    return lines, exit_status(results)


def read_all(change: Change, dag: Callable[[], str]) -> Reading:
    here, before = summary_at(change.head), summary_or_none(change.base)
    arms = [arm for arm in params_at(change.head)["arms"] if arm in params_at(change.base)["arms"]]
    return Reading(change, dag, before, here, {arm: diff_or_error(change, arm) for arm in arms})


def diff_or_error(change: Change, arm: str) -> SelectionDiff | UserError:
    try:
        return selection_diff(change.base, change.head, arm)
    except UserError as error:
        return error


def shown(name: str, part: Callable[[Reading], Iterable[str]], reading: Reading) -> list[str]:
    """Return the lines of a part, or why it cannot be shown: the rest of the report stands."""
    try:
        return list(part(reading))
    except UserError as error:
        return [f"⚠️ {name} cannot be shown: {plain(error)}", ""]


def headline(results: list[Result]) -> str:
    broken, unclear = ([plain(result.gate) for result in results if result.holds is holds] for holds in (False, None))
    if broken:
        return f"❌ {len(broken)} of {len(results)} gates broken: {'; '.join(broken)}"
    if unclear:
        return f"⚠️ {len(unclear)} of {len(results)} gates cannot be judged: {'; '.join(unclear)}"
    return f"✅ all {len(results)} gates hold"


def commits(change: Change) -> str:
    return f"{code(change.base[:7])} (base) → {code(change.head[:7])} (this)"


def gate_table(results: list[Result]) -> Iterator[str]:
    """Yield the gates, broken ones with what is wrong."""
    rows = [
        [
            plain(one.gate),
            plain(one.limit),
            plain(one.base),
            bold(plain(one.here), one.holds is False),
            SIGNS[one.holds],
        ]
        for one in results
    ]
    yield from table(["gate", "limit", "base", "here", ""], "lrrrl", rows)
    yield ""
    yield from (f"- {SIGNS[one.holds]} {plain(one.gate)}: {plain(one.note)}" for one in results if one.note)


def bold(text: str, wanted: bool) -> str:
    return f"**{text}**" if wanted and text else text


def changed(reading: Reading) -> Iterator[str]:
    """Yield what the author changed, and first what of it decides how the pull request is judged."""
    change = reading.change
    params = changed_values(params_at(change.base), params_at(change.head))
    files = git("diff", "--name-only", "-z", change.base, change.head).split("\0")[:-1]
    sources = [f"source {code(name)} ({counts})" for name, counts in changed_sources(reading)]
    written = [code(name) for name in files if not name.startswith(("metrics/", "dvc.lock", "params.yaml"))]
    values = [f"{code(name)} {plain(before)} → {plain(here)}" for name, before, here in params]
    yield f"**Changed** {limited(values + sources, LISTED) or 'no params, no sources'} · files: {limited(written, LISTED) or 'none'}"
    yield ""
    judging = [code(name) for name, *_ in params if name.split(".")[0] in JUDGING_PARAMS]
    judging += [code(name) for name in files if name.startswith(JUDGING_CODE)]
    if judging:
        yield f"⚠️ **Read these first:** they decide how a pull request is judged: {limited(judging, LISTED)}"
        yield ""


def changed_sources(reading: Reading) -> Iterator[tuple[str, str]]:
    """Yield the sources whose rows of raw changed in number."""
    before, here = (value_at(summary, "rows") or {} for summary in (reading.before, reading.here))
    for name in sorted({*before, *here} - {"all"}):
        was, now = (value_at(rows, name, "raw") or 0 for rows in (before, here))
        if was != now:
            yield name, f"{now - was:+,} rows"


def changed_values(before: Any, here: Any) -> list[tuple[str, Any, Any]]:
    """Return the values that differ, by their path in nested mappings, with `–` for one that is not there."""
    was, now = (dict(flatten(content)) for content in (before, here))
    names = [*now, *(name for name in was if name not in now)]
    return [
        (name, was.get(name, "–"), now.get(name, "–")) for name in names if was.get(name, "–") != now.get(name, "–")
    ]


def flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested mappings by its path. A list is one value."""
    if not isinstance(content, dict) or not content:
        yield prefix.removesuffix("."), content
        return
    for name, value in content.items():
        yield from flatten(value, f"{prefix}{name}.")


def ran_again(reading: Reading) -> Iterator[str]:
    found = compare_locks(lock_or_none(reading.change.base), read_lock(reading.change.head))
    yield f"**Ran again** {stage_names(found.reran) or 'nothing'}"
    yield ""
    if found.reran:
        same = [name for name in found.reran if name in found.same]
        yield f"**Same bytes again** {stage_names(same) or 'nothing of it'}"
        yield ""
    if found.unexplained:
        yield f"⚠️ **Other bytes from the same inputs:** {stage_names(found.unexplained)}: edited, or not reproducible"
        yield ""


def stage_names(stages: list[str]) -> str:
    """Return stages in one line; those that ran for the same arms stand together."""
    keys: dict[str, list[str]] = {}
    for name in stages:
        stage, _, key = name.partition("@")
        keys.setdefault(stage, []).append(key)
    groups: dict[tuple[str, ...], list[str]] = {}
    for stage, of in keys.items():
        groups.setdefault(tuple(of), []).append(code(stage))
    return " · ".join(
        ", ".join(names) + (f" of {', '.join(map(code, of))}" if any(of) else "") for of, names in groups.items()
    )


def cost(reading: Reading) -> Iterator[str]:
    """Yield the trainings of this pull request, and the cost of the selection at both commits."""
    found: Reran = compare_locks(lock_or_none(reading.change.base), read_lock(reading.change.head))
    trained = [name.partition("@")[2] for name in found.reran if name.startswith("train@")]
    flops = sum(value_at(reading.here, "cost", "arms", arm, "training_flops") or 0 for arm in trained)
    texts = [f"trainings: {len(trained)}, {flops:.2g} FLOP" if trained else "trainings: none"]
    for name, unit in (("rows", "rows to score"), ("flops", "FLOP")):
        was, now = (value_at(summary, "cost", "selection", name) for summary in (reading.before, reading.here))
        texts.append(f"selection: {now or 0:,.3g} {unit}" + (f" (base: {was:,.3g})" if was and was != now else ""))
    yield f"**Cost** {' · '.join(texts)}"
    yield ""


def arms(reading: Reading) -> Iterator[str]:
    """Yield the difference of every arm to the control, and how its rows moved; arms without a change only by name."""
    moved = [arm for arm in params_at(reading.change.head)["arms"] if is_moved(reading, arm)]
    rows = [arm_row(reading, arm) for arm in moved]
    if rows:
        heads = [
            "arm",
            "rows",
            "mean macro-F1 − control",
            "held-out loss − control",
            "in / out",
            "like for like",
            "net",
        ]
        yield from table(heads, "lrllrrr", rows)
        yield ""
    here, before = (list(params_at(revision)["arms"]) for revision in (reading.change.head, reading.change.base))
    if unmoved := [code(arm) for arm in here if arm not in moved]:
        yield f"No row and no result changed: {', '.join(unmoved)}"
        yield ""
    if gone := [code(arm) for arm in before if arm not in here]:
        yield f"Arms that are gone: {', '.join(gone)}"
        yield ""
    yield from unreadable(reading)
    yield from yardstick(reading)


def is_moved(reading: Reading, arm: str) -> bool:
    selection = reading.selections.get(arm)
    rows = isinstance(selection, SelectionDiff) and bool(len(selection.came) or len(selection.went))
    was, now = (value_at(summary, "arms", arm) for summary in (reading.before, reading.here))
    return rows or was != now or difference(reading.before, arm) != difference(reading.here, arm)


def arm_row(reading: Reading, arm: str) -> list[str]:
    was, now = (value_at(summary, "arms", arm, "sample", "rows") for summary in (reading.before, reading.here))
    control = arm == params_at(reading.change.head)["control"]
    scores = ["control", ""] if control else [was_to_is(reading, arm, score) for score in (macro_f1, held_out_loss)]
    return [name_of(reading, arm), f"{count(was)} → {count(now)}", *scores, *moves(reading.selections.get(arm))]


def name_of(reading: Reading, arm: str) -> str:
    """Return the name of an arm, with its number of runs if the difference is over several."""
    runs = value_at(reading.here, "methods", arm, "runs")
    return code(arm) + (f" ×{runs}" if runs else "")


def count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "–"


def was_to_is(reading: Reading, arm: str, score: Callable[[Any], dict[str, float] | None]) -> str:
    was, now = (score(difference(summary, arm)) for summary in (reading.before, reading.here))
    texts = ["–" if one is None else interval(one) for one in (was, now)]
    return texts[1] if texts[0] == texts[1] else f"{texts[0]} → **{texts[1]}**"


def moves(selection: SelectionDiff | UserError | None) -> list[str]:
    """Return how many rows came and went, how many of them were exchanged for their like, and the rest."""
    if not isinstance(selection, SelectionDiff):
        return ["new arm" if selection is None else "unreadable", "", ""]
    came, went = len(selection.came), len(selection.went)
    share = f" ({selection.net / selection.rows_after:.0%})" if selection.net and selection.rows_after else ""
    return [f"{came:,} / {went:,}", f"{selection.like_for_like:,}", f"{selection.net:,}{share}"]


def unreadable(reading: Reading) -> Iterator[str]:
    """Yield why the rows of some arms cannot be compared; the same reason once."""
    errors = {str(error): arm for arm, error in reading.selections.items() if isinstance(error, UserError)}
    for error, arm in errors.items():
        yield f"⚠️ the rows of {code(arm)} cannot be compared: {plain(error)}"
        yield ""


def yardstick(reading: Reading) -> Iterator[str]:
    """Yield how many rows another k-means seed replaces: what a reader compares `in / out` with."""
    methods = value_at(reading.here, "stability", "methods") or {}
    shares = {method: value_at(found, "overlap", "seed") for method, found in methods.items()}
    texts = [f"{1 - share:.0%} of {code(method)}" for method, share in shares.items() if isinstance(share, float)]
    if texts:
        yield f"> Another k-means seed alone replaces {', '.join(texts)}."
        yield ""


def causes(reading: Reading) -> Iterator[str]:
    for arm, selection in reading.selections.items():
        if isinstance(selection, SelectionDiff) and len(selection.came) + len(selection.went):
            why = [listed_causes(found) for found in (selection.causes_in, selection.causes_out)]
            yield f"{code(arm)}, why in: {why[0]}. Why out: {why[1]}."
            yield ""


def listed_causes(found: dict[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return " · ".join(f"{plain(cause)} {number:,}" for cause, number in ordered) or "none"


def examples(reading: Reading) -> Iterator[str]:
    """Yield some rows that came and some that went, folded."""
    lines: list[str] = []
    for arm, selection in reading.selections.items():
        if not isinstance(selection, SelectionDiff) or not len(selection.came) + len(selection.went):
            continue
        rows = [
            [sign, *cells] for sign, side in (("in", selection.came), ("out", selection.went)) for cells in some(side)
        ]
        lines += [f"{code(arm)}", "", *table(["", "row", "source", "instruction", "cause"], "lllll", rows), ""]
    if lines:
        yield from folded(f"Ten rows in and ten out of each arm", lines)


def some(rows: Any) -> list[list[str]]:
    """Return the first rows by id, which is a hash: any of them."""
    drawn = rows.sort_values("id").head(EXAMPLES)
    return [
        [code(row.id), *(plain(text) for text in (row.source, row.instruction, row.cause))]
        for row in drawn.itertuples()
    ]


def moved_metrics(reading: Reading) -> Iterator[str]:
    """Yield every metric that differs, the one that moved most first; an estimate with its interval is one."""
    found = metric_changes(reading.before, reading.here)
    rows = [[code(name), was, now] for name, was, now in found[:METRICS_LISTED]]
    total = len(cells_of(reading.here))
    if rows:
        more = [f"and {len(found) - METRICS_LISTED:,} more: `dvc metrics diff`"] if len(found) > METRICS_LISTED else []
        lines = [*table(["metric", "base", "here"], "lrr", rows), "", *more]
        yield from folded(f"Metrics that moved ({len(found):,} of {total:,})", lines)


def metric_changes(before: Any, here: Any) -> list[tuple[str, str, str]]:
    """Return the metrics that differ with their texts, the largest relative change first."""
    was, now = cells_of(before), cells_of(here)
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    names.sort(key=lambda name: -relative(was.get(name), now.get(name)))
    return [(name, *(one[name][1] if name in one else "–" for one in (was, now))) for name in names]


def relative(was: tuple[float, str] | None, now: tuple[float, str] | None) -> float:
    """Return by how much of the larger of two numbers they differ; of a number that is new or gone, all of it."""
    one, other = (0.0 if cell is None else float(cell[0]) for cell in (was, now))
    return abs(one - other) / (max(abs(one), abs(other)) or 1)


def cells_of(summary: Any) -> dict[str, tuple[float, str]]:
    """Return the number and the text of every metric; `est`, `lo` and `hi` are one, under the name of their mapping."""
    values = {name: value for name, value in flatten(summary or {}) if isinstance(value, int | float)}
    found = {}
    for name, value in values.items():
        inside, _, key = name.rpartition(".")
        ends = [values.get(f"{inside}.{end}") for end in ("est", "lo", "hi")]
        if key == "est" and None not in ends:
            found[inside] = (value, interval(dict(zip(("est", "lo", "hi"), ends, strict=True))))
        elif not (key in ("lo", "hi") and None not in ends):
            found[name] = (value, f"{value:,.4g}")
    return found


def pipeline(reading: Reading) -> Iterator[str]:
    yield from folded("The pipeline", ["```mermaid", *reading.dag().strip().splitlines(), "```"])


PARTS: dict[str, Callable[[Reading], Iterable[str]]] = {
    "what was changed": changed,
    "what ran again": ran_again,
    "what it cost": cost,
    "whether it helped": arms,
    "why rows came and went": causes,
    "what the selection is like": shares,
    "rows that came and went": examples,
    "metrics that moved": moved_metrics,
    "the pipeline": pipeline,
}


def find_commits(base: str) -> tuple[str, str]:
    """Return the merge base and HEAD. Raises UserError if there is none, or if files differ from HEAD."""
    if git("status", "--porcelain", "--untracked-files=no").strip():
        raise UserError("files differ from the last commit, and the report is about commits; commit or stash them")
    try:
        return git("merge-base", base, "HEAD").strip(), git("rev-parse", "HEAD").strip()
    except UserError as error:
        raise UserError(f"{base}: no common commit with HEAD: {error}; fetch it, with the full history") from None


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {words[0]}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def main(words: list[str]) -> int:
    if len(words) != 1 or words[0].startswith("-"):
        print("usage: python -m tools.pr_report BASE, such as origin/main", file=sys.stderr)
        return 2
    try:
        with ThreadPoolExecutor() as pool:
            change = start_change(*find_commits(words[0]), pool)
            dag = pool.submit(dvc, "dag", "--mermaid", "--collapse-foreach-matrix")
            lines, status = report_lines(change, lambda: dag.result().out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(*lines, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
