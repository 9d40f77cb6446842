"""Summarise the corpus, the arms and their differences, and write the tables behind the plots.

metrics/arms/*, metrics/items/*, data/profile.json, data/stability.json, data/audit.json
    -> metrics/summary.json, metrics/plots/{differences,ppl,cells,sources,loss,scores}.csv

If a method and the control have two or more runs each (an arm and its replicates), the summary says whether the method
helps (`statistics.replicates`). This needs runs that differ in both rows and training seed (`statistics.evidence`):
runs of one selection show only whether that selection helps, and one run of each only whether two models differ.
Preferences are compared with their placebos in the same way (`statistics.placebos`).
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.lib.core.artifacts import atomic, read_json, write_json
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.evaluation.marks import marks_from_json
from stages.lib.evaluation.metrics import metrics_of_every_task
from stages.lib.evaluation.predictions import from_digits
from stages.lib.selection.methods import METHODS, uses_cells
from stages.lib.selection.quotas import Allocation
from stages.lib.selection.sketch import share_of_rows
from stages.lib.statistics.comparison import Run, compare_methods
from stages.lib.statistics.evidence import Varied, name_subject, rows_vary, runs_of
from stages.lib.statistics.placebos import Preferences, compare_with_placebos, placebo_sentences
from stages.lib.statistics.verdicts import headlines, sentence, verdict

log = logging.getLogger("stages")
Arms = dict[str, Any]
TOKENS = 0.01
"""Most that the training tokens of a method may differ from the control's without a word."""


class AnyArm(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    method: str
    by: str | None = None
    allocation: Allocation = "exact"
    seed: int
    partition: int = 0
    replicate: str | None = None


class AnyBudget(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    unit: str


class AnyTrain(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    budget: AnyBudget


class Params(Section):
    arms: dict[str, AnyArm]
    control: str | None
    prefer: Preferences
    train: AnyTrain


class Difference(NamedTuple):
    """A method's difference to the control in one score."""

    name: str
    score: str
    estimate: dict[str, float]
    scope: str
    """What varies in the interval."""
    verdict: str


def report(
    params: Params, arms: Path, items: Path, profile: Path, stability: Path, audit: Path, summary: Path, plots: Path
) -> None:
    warn_of_stray_files(params, [arms, items])
    corpus, audited, base = read_json(profile), read_json(audit), read_json(arms / "base.json")
    found = {name: read_json(arms / f"{name}.json") for name in params.arms}
    tuned = {name: read_json(arms / f"{name}.json") for name in params.prefer}
    answers = {name: read_json(items / f"{name}.json") for name in [*params.arms, *params.prefer]}
    compared = compared_methods(params, found, answers)
    with_placebos = compare_with_placebos(params.prefer, {name: read_run(answers[name]) for name in params.prefer})
    content = {name: corpus[name] for name in ("rows", "ppl", "cells", "leaks")} | {
        "stability": read_json(stability),
        "audit": without_lists_and_cost(audited),
        "cost": costs(params, corpus["selection_cost"], found)
        | {"preferred": {name: one["cost"] for name, one in tuned.items()}},
        "base": {name: base[name] for name in ("scores", "scores_without_leaks", "answers")},
        "majority_baseline": base["majority_baseline"],
        "answer_floors": base["answer_floors"],
        "arms": {name: without_lists_and_cost(arm) for name, arm in found.items()},
        "methods": compared,
        "preferred": {name: without_lists_and_cost(one) for name, one in tuned.items()},
        "preferences": with_placebos,
    }
    write_json(summary, content)
    references = {"base": base["scores"], "(majority baseline)": base["majority_baseline"]}
    with atomic(plots) as folder:
        folder.mkdir()
        tables = plot_tables(corpus["ppl_histogram"], found, tuned, references)
        tables["differences"] = difference_table(str(params.control), method_differences(params, found, compared))
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    for line in [
        *sentences(params, found, compared),
        *placebo_sentences(params.prefer, tuned, with_placebos),
        *review_sentences(audited["reviews"]),
    ]:
        log.info("%s", line)


def warn_of_stray_files(params: Params, folders: list[Path]) -> None:
    """Name the files of arms that params.yaml no longer has. Git tracks them, so only the user can remove them."""
    paths = (path for folder in folders for path in folder.glob("*.json"))
    stray = sorted(path for path in paths if path.stem not in {*params.arms, *params.prefer, "base"})
    if stray:
        listed = " ".join(str(path) for path in stray)
        log.warning("ignored, because params.yaml has no such arm; remove with `git rm %s`", listed)


def read_run(content: dict[str, Any]) -> Run:
    marks = marks_from_json(content["answers"])
    return Run(from_digits(content["items"]), **content["held_out"], marks=marks, margins=content.get("margins", {}))


def costs(params: Params, selection: dict[str, int], arms: Arms) -> dict[str, Any]:
    """Return the cost of the selection and of each arm's training, and what the arm saves over training on everything.

    A smaller arm trains less, and so saves something, only if the budget is in epochs.
    """
    unit = params.train.budget.unit
    full = full_flops(params, arms) if params.control and unit == "epochs" else 0
    if unit != "epochs":
        log.info("cost: the budget is in %s, the same for all arms, so a smaller arm saves no training", unit)
    by_arm = {
        name: arm["cost"]
        | {
            "selection_flops": selection_flops(params.arms[name], selection),
            "saved_flops": full - arm["cost"]["training_flops"] if full else 0,
        }
        for name, arm in arms.items()
    }
    return {"selection": selection, "arms": by_arm}


def selection_flops(arm: AnyArm, selection: dict[str, int]) -> int:
    """Return the cost of the perplexities and of the vectors, each only if the arm selects by them."""
    method = METHODS[arm.method]
    scored = (arm.by or method.by) in ("ppl", "nll")
    embedded = method.reads_vectors or uses_cells(arm.method, arm.allocation)
    return scored * selection["ppl_flops"] + embedded * selection["embed_flops"]


def full_flops(params: Params, arms: Arms) -> int:
    """Return the cost of training on all candidates: that of an arm that did so, or the control's cost scaled up."""
    for name, arm in arms.items():
        if params.arms[name].method == "all":
            return int(arm["cost"]["training_flops"])
    control = str(params.control)
    sample: dict[str, int] = arms[control]["sample"]
    spent: int = arms[control]["cost"]["training_flops"]
    return round(spent / (sample["rows"] / sample["candidates"]))


def without_lists_and_cost(arm: Any) -> Any:
    """Leave out lists, which `dvc metrics diff` cannot show, and the cost, which has its own section."""
    if not isinstance(arm, dict):
        return arm
    return {
        name: without_lists_and_cost(value)
        for name, value in arm.items()
        if not isinstance(value, list) and name != "cost"
    }


def plot_tables(
    histogram: list[dict[str, Any]], arms: Arms, tuned: Arms, references: dict[str, Any]
) -> dict[str, pd.DataFrame]:
    """Return the tables behind the plots; `references` are scores to plot beside those of arms and preferences.

    The loss of a preference is another one than an arm's, so it is not plotted beside it.
    """
    everywhere = metrics_of_every_task()
    cells = [{"arm": name, **cell} for name, arm in arms.items() for cell in arm["sample"]["cells"]]
    sources = [{"arm": name, **source} for name, arm in arms.items() for source in arm["sample"]["sources"]]
    losses = [{"arm": name, **entry} for name, arm in arms.items() for entry in arm["train"]["loss"]]
    found = references | {name: arm["scores"] for name, arm in (arms | tuned).items()}
    scores = [
        {"arm": name, "shots": shots, "task": task} | {metric: values[metric] for metric in everywhere}
        for name, by_shots in found.items()
        for shots, tasks in by_shots.items()
        for task, values in tasks.items()
    ]
    return {
        "ppl": pd.DataFrame(histogram, columns=["source", "ppl", "share"]),
        "cells": pd.DataFrame(cells, columns=["arm", "cell", "candidates", "selected"]),
        "sources": pd.DataFrame(sources, columns=["arm", "source", "candidates", "selected"]),
        "loss": pd.DataFrame(losses, columns=["arm", "step", "loss"]),
        "scores": pd.DataFrame(scores),
    }


def difference_table(control: str, found: Iterable[Difference]) -> pd.DataFrame:
    """Return the table behind the forest plot, a row for every difference."""
    rows = [
        {
            "difference": f"{one.name} - {control}, {one.scope}",
            "score": one.score,
            "est": one.estimate["est"],
            "lo": one.estimate["lo"],
            "hi": one.estimate["hi"],
            "verdict": one.verdict,
        }
        for one in found
    ]
    return pd.DataFrame(rows, columns=["difference", "score", "est", "lo", "hi", "verdict"])


def compared_methods(params: Params, arms: Arms, answers: dict[str, Any]) -> dict[str, Any]:
    """Return the comparison with the control over runs and items, for each method if both have two or more runs.

    `arms` and `answers` have the content of metrics/arms/<arm>.json and metrics/items/<arm>.json by arm.
    """
    groups = runs_of(params.arms)
    theirs = groups.get(str(params.control), [])
    runs = {name: read_run(content) for name, content in answers.items()}
    varied = {name: find_varied(params, group, arms, answers) for name, group in groups.items() if len(group) > 1}
    return {
        name: {
            **varied[name]._asdict(),
            **{f"control_{key}": count for key, count in varied[str(params.control)]._asdict().items()},
            "draws_rows": int(METHODS[params.arms[name].method].draws_rows),
            "vs_control": compare_methods([runs[run] for run in ours], [runs[run] for run in theirs]),
        }
        for name, ours in groups.items()
        if name != params.control and min(len(ours), len(theirs)) > 1
    }


def find_varied(params: Params, group: list[str], arms: Arms, answers: dict[str, Any]) -> Varied:
    """Return what varies over these runs of one method."""
    shares = [share_of_rows(*pair) for pair in combinations([answers[run]["selection"] for run in group], 2)]
    sample = arms[group[0]]["sample"]
    by_chance = sample["rows"] / sample["candidates"]
    return Varied(len(group), len({params.arms[run].seed for run in group}), sum(shares) / len(shares), by_chance)


def varied_in(found: dict[str, Any], prefix: str = "") -> Varied:
    return Varied(*(found[prefix + name] for name in Varied._fields))


def method_differences(params: Params, arms: Arms, compared: dict[str, Any]) -> Iterator[Difference]:
    """Yield the differences of every method to the control: in held-out loss, and in mean macro-F1 by shots."""
    groups = runs_of(params.arms)
    theirs = groups.pop(str(params.control), [])
    for name, ours in groups.items():
        found = compared.get(name) or arms[name]
        sides = subjects(found) if name in compared else None
        scope = f"over {len(ours)} and {len(theirs)} runs and items" if name in compared else "over items only"
        for score, estimate, better in headlines(found["vs_control"]):
            yield Difference(name, score, estimate, scope, verdict(estimate, better, sides))


def sentences(params: Params, arms: Arms, compared: dict[str, Any]) -> Iterator[str]:
    """Yield the result of every method, and what its interval does not contain."""
    groups, control = runs_of(params.arms), str(params.control)
    found = list(method_differences(params, arms, compared))
    for name, ours in groups.items():
        if name == control:
            continue
        for one in (one for one in found if one.name == name):
            yield sentence(f"{name} minus {control}", one.score, one.estimate, one.scope, one.verdict)
        yield from unequal_training(name, arms[name], control, arms[control])
        yield from unequal_tokens(name, mean_tokens(arms, ours), control, mean_tokens(arms, groups[control]))
        if name in compared:
            yield from missing_chance(params, ours, varied_in(compared[name]))
    for method in list(compared.values())[:1]:
        yield from missing_chance(params, groups[control], varied_in(method, "control_"))
    if len(groups) > 1:
        yield "these are 95 % intervals: about one in twenty misses the true difference"


def review_sentences(reviews: dict[str, Any]) -> Iterator[str]:
    """Yield how many rows the reviews take out, and which reviews no longer match a row."""
    if reviews["lines"]:
        lost = ", ".join(line.get("id") or line["text_hash"] for line in reviews["lost"])
        yield f"reviews: {reviews['lines']}, rows that they take out: {reviews['rows_out']}" + (
            f"; reviews that no longer match a row: {reviews['lines_without_row']}: {lost}" if lost else ""
        )


def unequal_training(name: str, arm: Any, control: str, theirs: Any) -> Iterator[str]:
    """Yield how the arm's rows and steps differ from the control's. Steps differ if the budget is in epochs."""
    if arm["sample"]["rows"] != theirs["sample"]["rows"]:
        yield f"{name} has {arm['sample']['rows']:,} rows, {control} {theirs['sample']['rows']:,}"
    if arm["train"]["steps"] != theirs["train"]["steps"]:
        steps = f"{arm['train']['steps']:,} steps, {control} {theirs['train']['steps']:,}"
        yield f"{name} was trained for {steps}: the budgets differ, which alone may explain a difference"


def mean_tokens(arms: Arms, runs: list[str]) -> float:
    return float(sum(arms[run]["train"]["tokens"] for run in runs)) / len(runs)


def unequal_tokens(name: str, ours: float, control: str, theirs: float) -> Iterator[str]:
    """Yield how the tokens presented in training differ from the control's, if by more than TOKENS."""
    if abs(ours - theirs) > TOKENS * theirs:
        tokens = f"{ours:,.0f} tokens, {control} on {theirs:,.0f} ({100 * (ours / theirs - 1):+.1f} %)"
        yield f"{name} was trained on {tokens}, which alone may explain a difference"


def subjects(found: dict[str, Any]) -> tuple[str, str]:
    """Return what our runs and the control's are evidence about."""
    control = name_subject(varied_in(found, "control_"), "the control", "the control's")
    return name_subject(varied_in(found), "the method", "this"), control


def missing_chance(params: Params, group: list[str], varied: Varied) -> Iterator[str]:
    """Yield which chance is not in the interval over these runs, and how to have it there."""
    arm, partitions = params.arms[group[0]], {params.arms[run].partition for run in group}
    by_cell = uses_cells(arm.method, arm.allocation)
    if not rows_vary(varied):
        shared = f"{100 * varied.shared_rows:.3g} % of their rows ({100 * varied.shared_by_chance:.3g} % by chance)"
        remedy = "; give every run a `partition` of its own" if len(partitions) < len(group) and by_cell else ""
        yield f"{group[0]}: its runs share {shared}, and the interval does not contain the luck of these{remedy}"
    if varied.seeds < varied.runs:
        seeds = f"{varied.runs} runs, but training seeds: {varied.seeds}"
        yield f"{group[0]}: {seeds}; give every run a `seed` of its own"


if __name__ == "__main__":
    run(report, Params)
