"""The scores that a sentence of the report is about, and what their differences mean."""

from collections.abc import Iterator
from typing import Any

from stages.lib.statistics.comparison import Estimate

SHARES = {"prompt_level": "prompts followed", "final": "right final answers"}
"""Shares of the answers to prompts that get a sentence, and their names there."""


def headlines(found: dict[str, Any]) -> Iterator[tuple[str, Estimate, int]]:
    """Yield the name of a score, its estimate, and the sign of a better one."""
    if "margin" in found:
        yield "held-out margin", found["margin"], 1
    if "all" in found["held_out_loss"]:
        yield "held-out loss", found["held_out_loss"]["all"], -1
    for shots, tasks in found["scores"].items():
        yield f"{shots} mean macro-F1", tasks["mean"]["macro_f1"], 1
    for share, name in SHARES.items():
        if share in found["answers"]:
            yield name, found["answers"][share], 1


def verdict(estimate: Estimate, better: int, sides: tuple[str, str] | None) -> str:
    """Return what a difference means. `better` is the sign of a better one, `sides` is None for single runs."""
    side = (estimate["lo"] > 0) - (estimate["hi"] < 0)
    if "too_few" in estimate:
        return "too few items differ to conclude anything"
    if sides is None:
        finding = "these two models differ" if side else "no difference found between these two models"
        return f"{finding}; the noise of training is not in the interval"
    if not side:
        return "no finding"
    winner, loser = sides if side == better else sides[::-1]
    return f"{winner}{',' if ',' in winner else ''} beats {loser}"


def with_interval(estimate: Estimate) -> str:
    return "{est:+.4f} [{lo:+.4f}, {hi:+.4f}]".format(**estimate)


def sentence(names: str, score: str, estimate: Estimate, scope: str, found: str) -> str:
    """Return what is `found` about a difference; `names` are its sides, `scope` is what varies in its interval."""
    return f"{names}, {score}: {with_interval(estimate)} {scope}: {found}"
