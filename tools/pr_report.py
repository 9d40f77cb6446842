"""Report on a pull request, and say whether it may be merged: `python -m tools.pr_report BASE`.

BASE is the branch to merge into, such as origin/main; the report compares HEAD with their merge base. It prints
Markdown: the verdict, the gates (`tools.gates`), what was changed, what ran again, what it cost, whether it helped,
which rows came and went, and why. Nothing has to be pulled. The exit status is 0 if every gate holds, 1 if one is
broken, and 2 if none is broken but one cannot be judged.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stages.lib.core.errors import UserError
from tools.gates import Change, Result, compare_stages, exit_status, judge, params_at, start_change, value_at
from tools.lock_diff import edges, kind_of
from tools.markdown import as_text, code, folded, grid, limited
from tools.report_arms import Reading, arms, causes, examples, preferences, read_all, shares
from tools.report_metrics import changed_values, moved_metrics
from tools.revisions import read_lock

MARKER = "<!-- dvc-report -->"
SIGNS = {True: "✅", False: "❌", None: "⚠️"}
LISTED = 12
JUDGING_PARAMS = ("gates", "control", "compare", "evaluate", "fetch_benchmark", "decontaminate")
JUDGING_CODE = (
    *("dvc.yaml", ".dvc/", ".dvcignore", ".ci/", ".github/", ".gitlab-ci.yml", ".gitattributes", "pyproject.toml"),
    *("constraints.txt", "data/benchmark_inputs/", "data/reviews.jsonl", "tools/", "stages/lib/", "stages/merge.py"),
    *("stages/train.py", "stages/evaluate.py", "stages/decontaminate.py", "stages/compare.py", "stages/report.py"),
)
"""What decides how a pull request is judged. A person must look at changes to these."""


def write_report(change: Change) -> tuple[list[str], int]:
    """Return the report and the exit status."""
    reading, results = read_all(change), judge(change)
    lines = [MARKER, f"### {headline(results)}", "", commits(change), "", *gate_table(results), ""]
    for name, part in PARTS.items():
        lines += shown(name, part, reading)
    return lines, exit_status(results)


def shown(name: str, part: Callable[[Reading], Iterable[str]], reading: Reading) -> list[str]:
    """Return the lines of a part, or why it cannot be shown: a forged file can break any part, but not the report."""
    try:
        return list(part(reading))
    except Exception as error:
        return [f"⚠️ {name} cannot be shown: {as_text(error)}", ""]


def headline(results: list[Result]) -> str:
    broken, unclear = ([as_text(result.gate) for result in results if result.holds is holds] for holds in (False, None))
    if broken:
        return f"❌ {len(broken)} of {len(results)} gates broken: {'; '.join(broken)}"
    if unclear:
        return f"⚠️ {len(unclear)} of {len(results)} gates cannot be judged: {'; '.join(unclear)}"
    return f"✅ all {len(results)} gates hold"


def commits(change: Change) -> str:
    return f"{code(change.base[:7])} (base) → {code(change.head[:7])} (this)"


def gate_table(results: list[Result]) -> Iterator[str]:
    """Yield the gates, and what is wrong with those that do not hold."""
    rows = [
        [as_text(one.gate), one.limit, one.base, bold(one.here, one.holds is False), SIGNS[one.holds]]
        for one in results
    ]
    yield from grid(["gate", "limit", "base", "here", ""], "lrrrl", rows)
    yield ""
    yield from (f"- {SIGNS[one.holds]} {as_text(one.gate)}: {as_text(one.note)}" for one in results if one.note)


def bold(text: str, wanted: bool) -> str:
    return f"**{text}**" if wanted and text else text


def changed(reading: Reading) -> Iterator[str]:
    """Yield what the author changed, and which of these changes decide how the pull request is judged."""
    change = reading.change
    params = changed_values(params_at(change.base), params_at(change.head))
    files = git("diff", "--name-only", "--no-renames", "-z", change.base, change.head).split("\0")[:-1]
    sources = [f"source {code(name)} ({counts})" for name, counts in changed_sources(reading)]
    written = [code(name) for name in files if not name.startswith(("metrics/", "dvc.lock", "params.yaml"))]
    values = [f"{code(name)} {as_text(before)} → {as_text(here)}" for name, before, here in params]
    yield f"**Changed** {limited(values + sources, LISTED) or 'no params; no source has more or fewer rows'}"
    yield ""
    yield f"**Files** {limited(written, LISTED) or 'none'}"
    yield ""
    judging = [code(name) for name, *_ in params if name.split(".")[0] in JUDGING_PARAMS]
    judging += [code(name) for name in files if name.startswith(JUDGING_CODE)]
    if judging:
        yield f"⚠️ **Read these first:** they decide how a pull request is judged: {', '.join(judging)}"
        yield ""


def changed_sources(reading: Reading) -> Iterator[tuple[str, str]]:
    """Yield the sources whose number of rows in raw changed."""
    before, here = (value_at(summary, "rows") or {} for summary in (reading.before, reading.here))
    for name in sorted({*before, *here} - {"all"}):
        was, now = (value_at(rows, name, "raw") or 0 for rows in (before, here))
        if was != now:
            yield name, f"{now - was:+,} rows"


def ran_again(reading: Reading) -> Iterator[str]:
    found = compare_stages(reading.change)
    yield f"**Ran again** {stage_names(found.reran) or 'nothing'}"
    yield ""
    if found.reran:
        same = [name for name in found.reran if name in found.same]
        yield f"**Same bytes again** {stage_names(same) or 'none'}"
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
    """Yield the trainings of this pull request, and what the selection costs at both commits."""
    found = compare_stages(reading.change)
    trained = [name.partition("@")[::2] for name in found.reran if name.startswith(("train@", "prefer@"))]
    sections = {"train": "arms", "prefer": "preferred"}
    flops = sum(value_at(reading.here, "cost", sections[by], name, "training_flops") or 0 for by, name in trained)
    was, now = (describe_selection_cost(summary) for summary in (reading.before, reading.here))
    training = f"trainings: {len(trained)}" + (f" ({flops:.2g} FLOP)" if trained else "")
    yield f"**Cost** {training} · selection: {now}" + (f" (base: {was})" if was != now else ", as at the base")
    yield ""


def describe_selection_cost(summary: Any) -> str:
    found = value_at(summary, "cost", "selection")
    return f"{found['rows']:,} rows scored and embedded, {found['flops']:.2g} FLOP" if found else "unknown"


def stage_graph(reading: Reading) -> Iterator[str]:
    """Yield the graph of the stages, folded; those that ran again are marked."""
    lock, found = read_lock(reading.change.head), compare_stages(reading.change)
    arrows = [f"  {one} --> {other}" for one, other in edges(lock) if f"{one}{other}".isidentifier()]
    marked = sorted(name for name in {kind_of(name) for name in found.reran} if name.isidentifier())
    marks = [f"  class {','.join(marked)} reran"] if marked else []
    head = ["```mermaid", "flowchart TD", "  classDef reran fill:#e69f00,color:#000"]
    yield from folded("The pipeline, with what ran again", [*head, *arrows, *marks, "```"])


PARTS: dict[str, Callable[[Reading], Iterable[str]]] = {
    "what was changed": changed,
    "what ran again": ran_again,
    "what it cost": cost,
    "whether it helped": arms,
    "whether preference tuning helped": preferences,
    "why rows came and went": causes,
    "what the selection is like": shares,
    "rows that came and went": examples,
    "metrics that moved": lambda reading: moved_metrics(reading.before, reading.here),
    "the pipeline": stage_graph,
}


def find_commits(base: str) -> tuple[str, str]:
    """Return the merge base and HEAD. Raises UserError if there is none, or if files differ from HEAD."""
    if git("status", "--porcelain", "--untracked-files=no").strip():
        raise UserError("files differ from the last commit, but the report reads only commits; commit or stash them")
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
            lines, status = write_report(start_change(*find_commits(words[0]), pool))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(*lines, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
