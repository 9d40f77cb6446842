"""The parts of a pull request's report about its arms: did it help, which rows came and went, and why."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from stages.lib.core.errors import UserError
from tools.gates import (
    Change,
    held_out_loss,
    interval,
    lowest_macro_f1,
    params_at,
    summary_or_none,
    value_at,
    vs_control,
)
from tools.markdown import as_text, code, folded, grid, limited
from tools.selection_diff import SelectionDiff, selection_diff

EXAMPLES, SHARES = 10, 4
"""Rows and shares that are shown of each arm."""


class Reading(NamedTuple):
    """What several parts of the report need."""

    change: Change
    before: Any
    """The summary at the base; None if it is missing."""
    here: Any
    """The summary at HEAD; None if it is unreadable."""
    selections: dict[str, SelectionDiff | UserError]
    """By arm of either commit; an error if its rows cannot be read."""

    @property
    def moved(self) -> dict[str, SelectionDiff]:
        """The arms whose rows changed."""
        found = {arm: one for arm, one in self.selections.items() if isinstance(one, SelectionDiff)}
        return {arm: one for arm, one in found.items() if len(one.came) or len(one.went)}


def read_all(change: Change) -> Reading:
    names = dict.fromkeys([*params_at(change.head)["arms"], *params_at(change.base)["arms"]])
    selections = {arm: diff_or_error(change, arm) for arm in names}
    return Reading(change, summary_or_none(change.base), summary_or_none(change.head), selections)


def diff_or_error(change: Change, arm: str) -> SelectionDiff | UserError:
    try:
        return selection_diff(change.base, change.head, arm)
    except UserError as error:
        return error
    except Exception as error:  # a forged file can break any reader
        return UserError(f"{type(error).__name__}: {error}")


def arms(reading: Reading) -> Iterator[str]:
    """Yield the difference of every arm to the control, and how its rows moved; an unchanged arm is only named."""
    names = list(params_at(reading.change.head)["arms"])
    changed = [arm for arm in names if is_changed(reading, arm)]
    if changed:
        heads = [
            "arm",
            "rows",
            "mean macro-F1 − control",
            "held-out loss − control",
            "in / out",
            "like for like",
            "net",
        ]
        yield from grid(heads, "lrllrrr", [arm_row(reading, arm) for arm in changed])
        yield ""
    unreadable = {arm: str(one) for arm, one in reading.selections.items() if isinstance(one, UserError)}
    if unchanged := [code(arm) for arm in names if arm not in changed and arm not in unreadable]:
        yield f"No row and no result changed: {', '.join(unchanged)}"
        yield ""
    if gone := [code(arm) for arm in reading.selections if arm not in names]:
        yield f"Arms that are gone: {', '.join(gone)}"
        yield ""
    for error in dict.fromkeys(unreadable.values()):
        of = ", ".join(code(arm) for arm, one in unreadable.items() if one == error)
        yield f"⚠️ the rows of {of} cannot be compared: {as_text(error)}"
        yield ""


def is_changed(reading: Reading, arm: str) -> bool:
    """Return whether its rows or its results differ. Cells do not count, because they differ with every k-means."""
    if arm in reading.moved or vs_control(reading.before, arm) != vs_control(reading.here, arm):
        return True
    sides = (value_at(summary, "arms", arm) for summary in (reading.before, reading.here))
    was, now = ([value_at(side, name) for name in ("scores", "held_out_loss")] for side in sides)
    return was != now


def arm_row(reading: Reading, arm: str) -> list[str]:
    was, now = (value_at(summary, "arms", arm, "sample", "rows") for summary in (reading.before, reading.here))
    control = arm == params_at(reading.change.head)["control"]
    sides = [vs_control(summary, arm) for summary in (reading.before, reading.here)]
    scores = [was_to_is(map(score, sides)) for score in (lowest_macro_f1, held_out_loss)]
    runs = value_at(reading.here, "methods", arm, "runs")
    name = code(arm) + (f" ×{runs}" if runs else "")
    scores = ["control", ""] if control else scores
    return [name, f"{count(was)} → {count(now)}", *scores, *moves(reading.selections[arm])]


def count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "–"


def was_to_is(estimates: Iterable[dict[str, float] | None]) -> str:
    """Return an estimate at the base and here with its interval, or only the one here if it is the same."""
    was, now = map(interval, estimates)
    return now if was == now else f"{was} → **{now}**"


def moves(selection: SelectionDiff | UserError) -> list[str]:
    """Return how many rows came and went, how many of them were exchanged for similar ones, and the rest."""
    if isinstance(selection, UserError):
        return ["unreadable", "", ""]
    share = f" ({selection.net / selection.rows_after:.0%})" if selection.net and selection.rows_after else ""
    rows = f"{len(selection.came):,} / {len(selection.went):,}"
    return [rows, f"{selection.like_for_like:,}", f"{selection.net:,}{share}"]


def preferences(reading: Reading) -> Iterator[str]:
    """Yield what every preference changed in its arm, and in its margin beside its placebos'."""
    heads = ["preference", "margin − placebos'", "mean macro-F1 − its arm", "held-out loss − its arm"]
    rows = []
    for name in value_at(reading.here, "preferred") or {}:
        vs_arm = [
            was_to_is(
                score(value_at(summary, "preferred", name, "vs_control")) for summary in (reading.before, reading.here)
            )
            for score in (lowest_macro_f1, held_out_loss)
        ]
        margins = (
            value_at(summary, "preferences", name, "vs_placebo", "margin") for summary in (reading.before, reading.here)
        )
        rows.append([code(name), was_to_is(margins), *vs_arm])
    if rows:
        yield from grid(heads, "llll", rows)
        yield ""


def causes(reading: Reading) -> Iterator[str]:
    """Yield why rows came and went, and how many rows chance moves, to compare `in / out` with."""
    for arm, selection in reading.moved.items():
        why = [listed_causes(found) for found in (selection.causes_in, selection.causes_out)]
        yield f"{code(arm)}, why in: {why[0]}. Why out: {why[1]}."
        if selection.luck is not None:
            yield f"Changing only the k-means seed replaces {selection.luck:.0%} of such a selection."
        if selection.code:
            yield f"The causes do not cover changed code: {limited([code(path) for path in selection.code], EXAMPLES)}."
        yield ""


def listed_causes(found: dict[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return " · ".join(f"{as_text(cause)} {number:,}" for cause, number in ordered) or "none"


def shares(reading: Reading) -> Iterator[str]:
    """Yield the shares of the selected rows that changed."""
    names = {"source": "source", "length": "length", "ppl": "PPL"}
    rows = [
        [code(arm), *(largest_changes(selection.shares[name]) for name in names)]
        for arm, selection in reading.moved.items()
    ]
    if rows:
        yield from grid(["share of the rows by", *names.values()], "llll", rows)
        yield ""


def largest_changes(found: Any) -> str:
    """Return the shares that changed most, of a table with the columns `before` and `after`."""
    order = (found["after"] - found["before"]).abs().sort_values(ascending=False, kind="stable").index
    texts = [(name, *(f"{found.loc[name, side]:.0%}" for side in ("before", "after"))) for name in order]
    return limited([f"{as_text(name)}: {was} → {now}" for name, was, now in texts if was != now], SHARES) or "as before"


def examples(reading: Reading) -> Iterator[str]:
    """Yield some rows that came and some that went, folded."""
    lines: list[str] = []
    for arm, selection in reading.moved.items():
        rows = [[sign, *row] for sign, side in (("in", selection.came), ("out", selection.went)) for row in some(side)]
        lines += [code(arm), "", *grid(["", "row", "source", "instruction", "cause"], "lllll", rows), ""]
    if lines:
        yield from folded("Rows that came and went, at most ten of each", lines)


def some(rows: Any) -> list[list[str]]:
    """Return the first rows by id. An id is a hash, so these are arbitrary rows."""
    drawn = rows.sort_values("id").head(EXAMPLES).to_dict("records")
    return [[code(row["id"]), *(as_text(row[name]) for name in ("source", "instruction", "cause"))] for row in drawn]
