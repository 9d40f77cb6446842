"""Does preference tuning help, or would any labels do as much?

All pairs follow the one direction in which a run drifts. So six runs with shuffled labels had held-out reward
accuracies from 0.11 to 0.995, each with an interval over pairs far from 0.5, and none of them had learned anything.
What tells a preference from a placebo is the size of its held-out margin beside the margins of several placebos, with
an interval over runs and pairs (`replicates`). A pair's margin (Rafailov et al. 2023, arXiv 2305.18290, section 4) is

    beta x (gain of the better answer - gain of the worse one)      gain: log-probability after - before tuning, in nats
"""

from collections.abc import Iterator
from typing import Any, Literal

from stages.lib.core.params import Section
from stages.lib.statistics.comparison import Run, compare_methods
from stages.lib.statistics.evidence import runs_of
from stages.lib.statistics.verdicts import headlines, sentence, verdict


class AnyPreference(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    arm: str
    pairs: str
    labels: Literal["given", "shuffled"]
    replicate: str | None = None


Preferences = dict[str, AnyPreference]


def groups_of(prefer: Preferences) -> dict[str, list[str]]:
    """Return the runs of every preference with the given labels."""
    return runs_of({name: one for name, one in prefer.items() if one.labels == "given"})


def placebos_of(ours: list[str], prefer: Preferences) -> list[str]:
    """Return the preferences with shuffled labels on the same pairs and arms."""
    same = {(prefer[name].arm, prefer[name].pairs) for name in ours}
    return [name for name, one in prefer.items() if one.labels == "shuffled" and (one.arm, one.pairs) in same]


def compare_with_placebos(prefer: Preferences, runs: dict[str, Run]) -> dict[str, Any]:
    """Return each preference minus its placebos over runs, if there are two or more of each. `runs` is by name."""
    found = {}
    for name, ours in groups_of(prefer).items():
        theirs = placebos_of(ours, prefer)
        if min(len(ours), len(theirs)) > 1:
            difference = compare_methods([runs[run] for run in ours], [runs[run] for run in theirs])
            found[name] = {"runs": len(ours), "placebo_runs": len(theirs), "vs_placebo": difference}
    return found


def placebo_sentences(prefer: Preferences, tuned: dict[str, Any], compared: dict[str, Any]) -> Iterator[str]:
    """Yield the result of every preference: against its arm, and against its placebos.

    `tuned` has the content of metrics/arms/<name>.json by name, `compared` what `compare_with_placebos` returns.
    """
    for name, ours in groups_of(prefer).items():
        arm = prefer[name].arm
        for score, estimate, better in headlines(tuned[name]["vs_control"]):
            found = verdict(estimate, better, None)
            yield sentence(f"{name} minus {arm}", score, estimate, "over items only", found)
        placebos = placebos_of(ours, prefer)
        yield from against_placebos(name, compared.get(name))
        yield from (beside(run, tuned[run]) for run in [*ours, *placebos])
        if name in compared and len({prefer[run].arm for run in ours}) == 1:
            yield f"{name}: all runs begin with the arm {arm}, so its luck is not in the intervals over runs"


def against_placebos(name: str, compared: dict[str, Any] | None) -> Iterator[str]:
    if compared is None:
        yield (
            f"{name}: no sentence about its labels, because that needs two runs of it and two of a placebo "
            "(`labels: shuffled`)"
        )
        return
    for score, estimate, better in headlines(compared["vs_placebo"]):
        what = "pairs" if score == "held-out margin" else "items"
        scope = f"over {what} and runs ({compared['runs']} and {compared['placebo_runs']})"
        found = verdict(estimate, better, ("learning the given labels", "learning shuffled ones"))
        yield sentence(f"{name} minus its placebos", score, estimate, scope, found)


def beside(name: str, tuned: dict[str, Any]) -> str:
    """Return what is no evidence, but helps to read the margin."""
    pairs, answers = tuned["pairs"], tuned["answers"]
    gains = [
        f"{pairs[f'{side}_log_probability_after'] - pairs[f'{side}_log_probability_before']:+.2f} nats ({words})"
        for side, words in (("chosen", "better answers"), ("rejected", "worse ones"))
    ]
    length = f"; its answers to prompts have {answers['characters']:.0f} characters" if "characters" in answers else ""
    return (
        f"{name}, {pairs['pairs']:,} held-out pairs: margin {pairs['margin']:+.3f}, reward accuracy "
        f"{pairs['accuracy']:.3f}, which is no evidence; log-probability changed by {' and '.join(gains)}{length}"
    )
