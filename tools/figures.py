"""Draw the pictures in README and docs from committed results: `python -m tools.figures`.

docs/results/real_rows.csv -> docs/images/forest.svg
the tables below -> docs/images/pipeline.svg
the report in docs/team.md -> docs/images/report.svg
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import dropwhile, groupby, pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

from tools.drawing import INK, LINE, SOFT, card, dot, element, line, text

DOCS = Path(__file__).parent.parent / "docs"
WIDTH = 880


# -- the forest plot: differences and their 95 % intervals -----------------------------------------------------------


class Panel(NamedTuple):
    title: str
    note: str
    metrics: tuple[str, ...]
    """As in the table; the first is drawn as a filled dot, the second as an open one."""
    left: int
    right: int
    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)


class Difference(NamedTuple):
    comparison: str
    interval: str
    metric: str
    est: float
    lo: float
    hi: float


LOSS = Panel(
    "Held-out loss, nats per answer token", "lower is better", ("held_out_loss",),
    275, 595, -0.95, 0.15, (-0.8, -0.6, -0.4, -0.2, 0.0),
)  # fmt: skip
SCORES = Panel(
    "KoBEST, mean macro-F1", "higher is better", ("macro_f1 0-shot", "macro_f1 1-shot"),
    635, 855, -0.0075, 0.0075, (-0.005, 0.0, 0.005),
)  # fmt: skip
TOP, ROW, GAP = 128, 42, 30
"""Middle of the first row, height of a row, and the extra space above the rows against the base."""
METHODS, ITSELF, ITEMS = "#0969da", "#bc4c00", "#6e7781"
"""Colours: an interval over runs and items; `random` against itself; an interval over items only."""


def forest(path: Path) -> str:
    """Return the picture of a table of differences."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [difference(row) for row in csv.DictReader(file)]
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.comparison)]
    places = [TOP + ROW * number + GAP * group[0].comparison.endswith("base") for number, group in enumerate(groups)]
    bottom = places[-1] + ROW / 2 + 4
    parts = [*heading(), *against_base(places, groups)]
    for panel in (LOSS, SCORES):
        parts += axis(panel, TOP - ROW / 2 - 4, bottom)
    for y, group in zip(places, groups, strict=True):
        parts += label(y, group[0])
        parts += [mark for panel in (LOSS, SCORES) for mark in marks(panel, y, group)]
    parts += legend(bottom + 52)
    return card(WIDTH, round(bottom + 76), "Differences on 30,503 real rows, with 95 % intervals", parts)


def difference(row: dict[str, str]) -> Difference:
    return Difference(
        row["comparison"], row["interval"], row["metric"], float(row["est"]), float(row["lo"]), float(row["hi"])
    )


def heading() -> Iterator[str]:
    yield text(24, 38, "On 30,503 real rows, spread is not shown to beat random", 18, font_weight=600)
    yield text(24, 89, "differences and their 95 % intervals", 12, SOFT, font_style="italic")
    for panel in (LOSS, SCORES):
        yield text(panel.left, 72, panel.title, 13, font_weight=600)
        yield text(panel.left, 89, panel.note, 12, SOFT)
    for x, fill, words in ((765, SOFT, "0-shot"), (817, "#ffffff", "1-shot")):
        yield dot(x, 85, fill, SOFT, 3.5)
        yield text(x + 8, 89, words, 12, SOFT)


def against_base(places: Sequence[float], groups: list[list[Difference]]) -> Iterator[str]:
    """Yield the line between the rows against `random` and the rows against the base."""
    y = next(y for y, group in zip(places, groups, strict=True) if group[0].comparison.endswith("base"))
    yield line(24, y - (ROW + GAP) / 2 + 1, WIDTH - 24, y - (ROW + GAP) / 2 + 1)
    yield text(24, y - ROW / 2 - 2, "against the model before any tuning", 12, SOFT, font_style="italic")


def axis(panel: Panel, top: float, bottom: float) -> Iterator[str]:
    for tick in panel.ticks:
        x = panel.x(tick)
        yield line(x, top, x, bottom, INK if tick == 0 else "#eaeef2", stroke_width=1.2 if tick == 0 else 1)
        words = "0" if tick == 0 else f"{tick:+g}".replace("-", "\u2212")
        yield text(x, bottom + 17, words, 12, SOFT, text_anchor="middle")


def label(y: float, row: Difference) -> Iterator[str]:
    """Yield what is compared, and from how many runs."""
    what, _, runs = row.comparison.partition(", ")
    yield text(24, y - 2, what.replace("-", "\u2212"), 14, colour(row), font_weight=600)
    yield text(24, y + 14, ", ".join(filter(None, [runs, f"over {row.interval}"])), 11, SOFT)


def colour(row: Difference) -> str:
    if row.comparison.startswith("random - random"):
        return ITSELF
    return METHODS if row.interval == "runs and items" else ITEMS


def marks(panel: Panel, y: float, group: list[Difference]) -> Iterator[str]:
    """Yield the intervals of one comparison in one panel."""
    for number, metric in enumerate(panel.metrics):
        row = next(row for row in group if row.metric == metric)
        paint, width = colour(row), 3.5 if row.interval == "runs and items" else 2
        height = y + (number - (len(panel.metrics) - 1) / 2) * 13
        yield line(panel.x(row.lo), height, panel.x(row.hi), height, paint, stroke_width=width, stroke_linecap="round")
        yield dot(panel.x(row.est), height, "#ffffff" if number else paint, paint)


def legend(y: float) -> Iterator[str]:
    entries = (
        (24, METHODS, "over runs and items: compares two methods"),
        (333, ITEMS, "over items only: compares two models"),
        (613, ITSELF, "one method against itself: another seed"),
    )
    for x, paint, words in entries:
        yield line(x, y - 4, x + 20, y - 4, paint, stroke_width=3.5 if paint == METHODS else 2)
        yield text(x + 27, y, words, 12, SOFT)


# -- the pipeline: what reads what -----------------------------------------------------------------------------------

SHADES = {"bring": "#f6f8fa", "score": "#ddf4ff", "choose": "#dafbe1", "learn": "#fff1e5", "compare": "#fbefff"}
STAGES = {  # name: column, row, shade; `profile, ...` stands for profile, stability and audit
    "fetch_model@scorer": (1, 2, "bring"),
    "fetch": (0, 1, "bring"),
    "fetch_model@encoder": (1, 0, "bring"),
    "fetch_benchmark": (0, 4, "bring"),
    "merge": (1, 1, "bring"),
    "ppl": (2, 1, "score"),
    "decontaminate": (2, 3, "score"),
    "embed": (2, 0, "score"),
    "cluster": (3, 0, "score"),
    "rate": (3, 2, "score"),
    "dedup": (3, 3, "score"),
    "candidates": (4, 1, "choose"),
    "profile, ...": (5, 0, "choose"),
    "sample@arm": (5, 1, "choose"),
    "fetch_model@base": (4, 2, "bring"),
    "train@arm": (5, 2, "learn"),
    "evaluate@arm": (5, 3, "learn"),
    "evaluate_base": (4, 4, "learn"),
    "compare@arm": (5, 4, "compare"),
    "compare_base": (5, 5, "compare"),
    "report": (6, 4, "compare"),
}
ARROWS = """
fetch > merge > ppl > candidates > sample@arm > train@arm > evaluate@arm > compare@arm > report
merge > embed > cluster > candidates > profile, ... > report
merge > decontaminate > rate > candidates
embed > dedup > rate
dedup > candidates
fetch_model@scorer > ppl
fetch_model@scorer > rate
fetch_model@encoder > embed
fetch_model@base > train@arm
fetch_model@base > evaluate_base > compare@arm
fetch_benchmark > decontaminate
fetch_benchmark > evaluate@arm
fetch_benchmark > evaluate_base > compare_base > report
"""
PITCH, LEVEL, BOX, TALL = 126, 58, 100, 34
"""From one column to the next, from one row to the next, and the size of a box."""
HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>'
)


def pipeline() -> str:
    """Return the picture of the stages."""
    chains = [chain.split(" > ") for chain in ARROWS.strip().splitlines()]
    pairs = dict.fromkeys(pair for chain in chains for pair in pairwise(chain))
    boxes = [part for name in STAGES for part in box(name)]
    parts = [HEAD, *every_arm(), *(arrow(*pair) for pair in pairs), *boxes]
    return card(WIDTH, middle(5) + 38, "The stages of the pipeline and what they read", parts)


def left(column: int) -> int:
    return 12 + column * PITCH


def middle(row: int) -> int:
    return 38 + row * LEVEL


def every_arm() -> Iterator[str]:
    """Yield the frame around the stages that run for each arm."""
    x, y, height = left(5) - 8, middle(1) - TALL / 2 - 8, 3 * LEVEL + TALL + 16
    yield element(
        "rect", x=x, y=y, width=BOX + 16, height=height, rx=9, fill="none", stroke=SOFT, stroke_dasharray="4 4"
    )
    side = left(5) + BOX + 13
    yield text(side, middle(2), "for each arm", 12, SOFT, transform=f"rotate(90 {side} {middle(2)})", dx=-35)


def arrow(start: str, end: str) -> str:
    """Return an arrow from one box to another."""
    (c1, r1, _), (c2, r2, _) = STAGES[start], STAGES[end]
    x1, y1, x2, y2 = left(c1) + BOX, middle(r1), left(c2) - 1, middle(r2)
    side = (TALL // 2 + 1) * (1 if r2 > r1 else -1)
    if c1 == c2:
        path = f"M{x1 - BOX // 2} {y1 + side}V{y2 - side}"
    elif end == "report" and r1 != r2:
        path = f"M{x1} {y1}H{x2 + BOX // 2}V{y2 - side}"
    else:
        bend = (x2 - x1) // 2
        path = f"M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
    return element("path", d=path, fill="none", stroke=SOFT, stroke_width=1.3, marker_end="url(#head)")


def box(name: str) -> Iterator[str]:
    column, row, shade = STAGES[name]
    x, y = left(column), middle(row)
    yield element("rect", x=x, y=y - TALL // 2, width=BOX, height=TALL, rx=7, fill=SHADES[shade], stroke=LINE)
    stage, _, role = name.partition("@")
    lines = [stage, f"@{role}"] if stage == "fetch_model" else [name]
    for number, words in enumerate(lines):
        height = y + 4 + 13 * number - 6.5 * (len(lines) - 1)
        yield text(x + BOX / 2, height, words, 12, text_anchor="middle")


# -- the head of a report on a pull request --------------------------------------------------------------------------

HOLDS, BROKEN = "#1a7f37", "#cf222e"
GATES = ((24, "start"), (470, "end"), (640, "end"), (820, "end"))
"""Place and anchor of the columns: gate, limit, base, here. The last column, the sign, is a dot."""
ARMS = ((24, "start"), (170, "end"), (350, "end"), (620, "end"), (690, "end"), (776, "end"), (856, "end"))
STEP = 24


def report_head(page: Path) -> str:
    """Return the verdict, the gates and the arms of the report that a page of docs contains."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    verdict = next(line for line in lines if line.startswith(("**✅", "**❌")))
    gates, arms = ([*markdown_rows(lines)] for _ in range(2))
    height = 72 + STEP * (len(gates) + len(arms) + 1)
    return card(WIDTH, height, "The head of a report on a pull request", report_parts(verdict, gates, arms))


def markdown_rows(lines: Iterator[str]) -> Iterator[list[str]]:
    """Yield the cells of the next Markdown table, without its markup; the head first."""
    rows = takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines))
    cells = ([cell.strip().replace("*", "").replace("`", "") for cell in row.strip("|").split("|")] for row in rows)
    return (row for row in cells if set(row[0]) != {"-"})


def report_parts(verdict: str, gates: list[list[str]], arms: list[list[str]]) -> Iterator[str]:
    words, holds = verdict.strip("*")[2:], "✅" in verdict
    yield dot(34, 32, HOLDS if holds else BROKEN, HOLDS if holds else BROKEN, 7)
    yield text(52, 38, words, 17, font_weight="600")
    y = 72
    for number, (*cells, sign) in enumerate(gates):
        yield from table_line(y + STEP * number, cells, GATES, number == 0)
        if number:
            colour = HOLDS if sign == "✅" else BROKEN
            yield dot(846, y + STEP * number - 4, colour if sign == "✅" else "#ffffff", colour)
    y += STEP * (len(gates) + 1)
    for number, cells in enumerate(arms):
        yield from table_line(y + STEP * number, cells, ARMS, number == 0)


def table_line(y: int, cells: Sequence[str], columns: Sequence[tuple[int, str]], is_head: bool) -> Iterator[str]:
    for cell, (x, anchor) in zip(cells, columns, strict=True):
        if cell:
            yield text(x, y, cell, 12, SOFT if is_head else INK, text_anchor=anchor)
    if is_head:
        yield line(24, y + 7, WIDTH - 24, y + 7)


# --------------------------------------------------------------------------------------------------------------------


def pictures() -> dict[str, str]:
    """Return the pictures by name."""
    return {
        "forest": forest(DOCS / "results/real_rows.csv"),
        "pipeline": pipeline(),
        "report": report_head(DOCS / "team.md"),
    }


def main() -> int:
    for name, picture in pictures().items():
        (DOCS / f"images/{name}.svg").write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
