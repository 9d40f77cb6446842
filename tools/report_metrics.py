"""Which values of two nested mappings differ, such as two revisions of params.yaml or of metrics/summary.json."""

from collections.abc import Iterator
from typing import Any

from tools.gates import interval
from tools.markdown import code, folded, grid

LISTED = 60


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


def moved_metrics(before: Any, here: Any) -> Iterator[str]:
    """Yield every metric that differs, the one that moved most first; an estimate and its interval count as one."""
    found = metric_changes(before, here)
    rows = [[code(name), was, now] for name, was, now in found[:LISTED]]
    more = [f"and {len(found) - LISTED:,} more: `dvc metrics diff`"] if len(found) > LISTED else []
    if rows:
        lines = [*grid(["metric", "base", "here"], "lrr", rows), "", *more]
        yield from folded(f"Metrics that moved ({len(found):,} of {len(cells_of(here)):,})", lines)


def metric_changes(before: Any, here: Any) -> list[tuple[str, str, str]]:
    """Return the metrics that differ, with both texts, the largest relative change first."""
    was, now = cells_of(before), cells_of(here)
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    names.sort(key=lambda name: -relative(was.get(name), now.get(name)))
    return [(name, *(one[name][1] if name in one else "–" for one in (was, now))) for name in names]


def relative(was: tuple[float, str] | None, now: tuple[float, str] | None) -> float:
    """Return the difference of two numbers as a share of the larger one; a missing number counts as 0."""
    one, other = (0.0 if cell is None else float(cell[0]) for cell in (was, now))
    return abs(one - other) / (max(abs(one), abs(other)) or 1)


def cells_of(summary: Any) -> dict[str, tuple[float, str]]:
    """Return the number and the text of every metric. An estimate, its interval and its p count as one."""
    values = {name: value for name, value in flatten(summary or {}) if isinstance(value, int | float)}
    found = {}
    for name, value in values.items():
        inside = name.rpartition(".")[0]
        one = {end: values.get(f"{inside}.{end}") for end in ("est", "lo", "hi")}
        if None in one.values():
            found[name] = (value, f"{value:,.4g}")
        else:
            found[inside] = (one["est"], interval(one))
    return found
