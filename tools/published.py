"""Set our KoBEST figures beside published ones: `python -m tools.published`, Markdown.

tools/published.csv holds the tables as they were published, one figure a row, `metric` as truly measured (`unknown`
where a source does not let one know). metrics/summary.json holds ours.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.core.artifacts import read_json
from stages.lib.evaluation.kobest import KOBEST
from tools.output import print_lines

TABLE = Path(__file__).with_name("published.csv")
COLUMNS = [(task, "macro_f1") for task in KOBEST] + [
    ("mean", "macro_f1"),
    ("hellaswag", "acc_norm"),
    ("hellaswag", "unknown"),
    ("mean", "unknown"),
]
NOTES = {
    "polyglot-ko-5.8b model card": "the harness's `polyglot` branch, whose prompts are ours but for a space in COPA. "
    "Its HellaSwag is headed F1 and is acc_norm. Comparable at 0 shots; at more, the examples in the prompt are not "
    "known to be ours. The 1.3b and the 3.8b are equal to four digits in BoolQ and SentiNeg at 50 shots, so one of "
    "each is doubtful.",
    "KoT-platypus README": "Beomi's fork of the harness, which rewrote the prompts of BoolQ, WiC, HellaSwag and "
    "SentiNeg in September 2023: not comparable, except among themselves. WiC was left out. Whether its HellaSwag is "
    "length-normalised is not said.",
    "KoQuality-Polyglot-5.8b model card": "a mean over five tasks that the text calls accuracy and the headings F1; "
    "which, and which of HellaSwag's, cannot be known: not comparable, except among themselves.",
    "ko-lm-evaluation-harness result file": "Beomi's fork, one model: its three HellaSwag figures, acc .502, acc_norm "
    ".626 and macro-F1 .4997, show how far apart they lie.",
}


def lines(path: Path) -> Iterator[str]:
    """Yield one table for every number of shots of ours, then what is comparable."""
    summary, published = read_json(path), pd.read_csv(TABLE)
    arms = {f"**{name}**": arm["scores"] for name, arm in summary["arms"].items()}
    models = {"**base**": summary["base"]["scores"], **arms, "majority baseline": summary["majority_baseline"]}
    for shots in sorted({int(name.removesuffix("-shot")) for name in summary["majority_baseline"]}):
        rows = [(f"{model} [{note(source)}]", figures_of(group)) for (model, source), group in groups(published, shots)]
        rows += [(name, of_kobest(scores[f"{shots}-shot"])) for name, scores in models.items()]
        yield f"### {shots}-shot\n\n{table(rows)}\n"
    yield from (f"[{note(source)}] {source}: {text}\n" for source, text in NOTES.items())
    yield ours(next(iter(summary["base"]["scores"].values())))


def groups(published: pd.DataFrame, shots: int) -> Any:
    return published[published["shots"] == shots].groupby(["model", "source"], sort=False)


def note(source: str) -> int:
    return list(NOTES).index(source) + 1


def figures_of(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows.itertuples():
        found.setdefault(str(row.task), {})[str(row.metric)] = float(row.value)
    return found


def table(rows: list[tuple[str, dict[str, dict[str, float]]]]) -> str:
    """Return a Markdown table of the columns in which any row has a figure."""
    kept = [(task, metric) for task, metric in COLUMNS if any(metric in found.get(task, {}) for _, found in rows)]
    head = ["model", *(f"{task} {metric}" for task, metric in kept)]
    body = [[name, *(cell(found.get(task, {}).get(metric)) for task, metric in kept)] for name, found in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---", *["--:"] * len(kept)], *body])


def cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".removeprefix("0")


def of_kobest(tasks: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of KoBEST's tasks, and the mean where it is over these five and no others."""
    mean = {"mean"} if {*tasks} == {*KOBEST, "mean"} else set()
    return {task: found for task, found in tasks.items() if task in {*KOBEST} | mean}


def ours(tasks: dict[str, Any]) -> str:
    """Return whether our own figures are of KoBEST at all."""
    items = {task: found["n"] for task, found in tasks.items() if task in KOBEST}
    if items and all(KOBEST[task].test_items == n for task, n in items.items()):
        return "Ours: KoBEST v1.0, prompts of lm-evaluation-harness, metrics under their own names."
    return f"Ours are of other items than KoBEST's ({items}), so no published figure is comparable with them."


def main() -> int:
    return print_lines(lines(Path("metrics/summary.json")))


if __name__ == "__main__":
    sys.exit(main())
