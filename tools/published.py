"""Print our KoBEST scores beside published ones, as Markdown: `python -m tools.published`.

tools/published.csv has the published tables, one score per row. Its `metric` is what was actually measured, or
`unknown` if the source does not make that clear. Ours are in metrics/summary.json.
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
    "polyglot-ko-5.8b model card": "the harness's `polyglot` branch, whose prompts equal ours except for a space in "
    "COPA. Its HellaSwag column is headed F1 but is acc_norm. Comparable at 0 shots; with more, it is unknown whether "
    "the examples in the prompt are ours. The 1.3b and the 3.8b are equal to four digits in BoolQ and SentiNeg at 50 "
    "shots, so one of each is doubtful.",
    "KoT-platypus README": "Beomi's fork of the harness, which rewrote the prompts of BoolQ, WiC, HellaSwag and "
    "SentiNeg in September 2023: comparable only with each other. WiC was left out. The source does not say whether "
    "HellaSwag is length-normalised.",
    "KoQuality-Polyglot-5.8b model card": "a mean over five tasks that the text calls accuracy and the headings F1. It "
    "is unknown which it is, and which metric HellaSwag has: comparable only with each other.",
    "ko-lm-evaluation-harness result file": "Beomi's fork, one model. Its three HellaSwag scores, acc 0.502, acc_norm "
    "0.626 and macro-F1 0.4997, show how far apart these metrics are.",
}


def comparison_tables(path: Path) -> Iterator[str]:
    """Yield one table for each of our numbers of shots, then notes on what is comparable."""
    summary, published = read_json(path), pd.read_csv(TABLE)
    arms = {f"**{name}**": arm["scores"] for name, arm in summary["arms"].items()}
    models = {"**base**": summary["base"]["scores"], **arms, "majority baseline": summary["majority_baseline"]}
    for shots in sorted({int(name.removesuffix("-shot")) for name in summary["majority_baseline"]}):
        groups = published[published["shots"] == shots].groupby(["model", "source"], sort=False)
        rows = [(f"{model} [{note_number(source)}]", published_scores(group)) for (model, source), group in groups]
        rows += [(name, of_kobest(scores[f"{shots}-shot"])) for name, scores in models.items()]
        yield f"### {shots}-shot\n\n{markdown_table(rows)}\n"
    yield from (f"[{note_number(source)}] {source}: {text}\n" for source, text in NOTES.items())
    yield comparability(next(iter(summary["base"]["scores"].values())))


def note_number(source: str) -> int:
    return list(NOTES).index(source) + 1


def published_scores(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows.itertuples():
        found.setdefault(str(row.task), {})[str(row.metric)] = float(row.value)
    return found


def markdown_table(rows: list[tuple[str, dict[str, dict[str, float]]]]) -> str:
    """Return a Markdown table of the columns in which any row has a score."""
    kept = [(task, metric) for task, metric in COLUMNS if any(metric in found.get(task, {}) for _, found in rows)]
    head = ["model", *(f"{task} {metric}" for task, metric in kept)]
    body = [[name, *(format_score(found.get(task, {}).get(metric)) for task, metric in kept)] for name, found in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---", *["--:"] * len(kept)], *body])


def format_score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".removeprefix("0")


def of_kobest(tasks: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of KoBEST's tasks, and the mean if it is over exactly these five."""
    mean = {"mean"} if {*tasks} == {*KOBEST, "mean"} else set()
    return {task: found for task, found in tasks.items() if task in {*KOBEST} | mean}


def comparability(tasks: dict[str, Any]) -> str:
    """Return whether our scores can be compared with published ones."""
    items = {task: found["n"] for task, found in tasks.items() if task in KOBEST}
    if items and all(KOBEST[task].test_items == n for task, n in items.items()):
        return "Ours: KoBEST v1.0, prompts of lm-evaluation-harness, metrics under their own names."
    return f"Ours are over other items than KoBEST's ({items}), so no published score is comparable with them."


def main() -> int:
    return print_lines(comparison_tables(Path("metrics/summary.json")))


if __name__ == "__main__":
    sys.exit(main())
