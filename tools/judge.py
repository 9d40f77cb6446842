"""Pay a judge to compare the answers of two arms: `python -m tools.judge ARM [OTHER] [--yes]`.

OTHER is the control if it is not given; for a preference, it is the arm that was trained further. Every run of ARM
meets every run of OTHER in every prompt of `generate`, in both orders; equal answers are a tie and not asked about.
Without `--yes` the command asks nobody: if the ledger has all replies, it prints the result, otherwise what asking
would cost. The judge is that of `rate.request` and `ask`, the ledger that of `rate.ledger`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from string import Formatter
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from pydantic import model_validator

from stages.lib.core.errors import UserError
from stages.lib.core.params import Section, read_params
from stages.lib.rating.marks import OK
from stages.lib.rating.prompts import PROMPTS
from stages.lib.rating.request import Request, key_of
from stages.lib.statistics.comparison import Resampling
from stages.lib.statistics.evidence import runs_of
from stages.lib.statistics.placebos import AnyPreference
from stages.report import AnyArm
from tools.answers import ANSWERS, read_answers
from tools.pairwise import LEAST_PROMPTS, Tally, TwoMarks, conclusion, tally, two_marks_of
from tools.paying import (
    Order,
    Paying,
    Requests,
    count_earlier,
    how_to_keep,
    how_to_pay,
    journal_path,
    known_replies,
    open_ledger,
    pay,
    price_lines,
    print_as_it_goes,
)
from tools.replies import Payload, Reply

PROMPT = PROMPTS / "pairwise/ko.yaml"


class PairPrompt(Section):
    system: str
    user: str
    """With `{prompt}`, `{first}` and `{second}`, for the question and the two answers."""

    @model_validator(mode="after")
    def shows_the_question_and_both_answers(self) -> Self:
        fields = sorted(name for _, name, _, _ in Formatter().parse(self.user) if name is not None)
        if fields != ["first", "prompt", "second"]:
            raise ValueError("user: must have {prompt}, {first} and {second}, each once, and nothing else in braces")
        return self


class Params(Paying):
    arms: dict[str, AnyArm]
    control: str | None
    prefer: dict[str, AnyPreference]
    compare: Resampling


class Match(NamedTuple):
    """Two answers to one prompt."""

    straight: Payload | None
    """Asks about them with ours first; None if they are equal."""
    swapped: Payload | None


def judge_arms(arm: str, other: str | None, paying: bool) -> Iterator[str]:
    """Compare the answers as far as the ledger and `paying` allow, and yield what there is to say about it."""
    params = read_params(Params)
    ours, theirs = contestants(params, arm, other)
    answers = prompts_and_answers([*ours, *theirs])
    matches = pair_up(answers, ours, theirs, params.rate.request)
    ledger = Path(params.rate.ledger)
    replies = yield from open_ledger(ledger, paying)
    order, requests = make_order(matches, replies)
    yield f"{', '.join(ours)} against {', '.join(theirs)}: {len(answers):,} prompts, {len(matches):,} pairs of answers"
    equal = sum(match.straight is None for match in matches)
    yield f"{equal:,} pairs have equal answers and are ties; the others need {requests:,} different requests"
    yield f"{requests - order.todo.total:,} of them are in {ledger}; {order.todo.total:,} are to be asked"
    yield from price_lines(order, params)
    if order.todo.total and not paying:
        yield how_to_pay("tools.judge", params.ask.url)
        return
    if order.todo.total:
        yield from pay(order.todo, params, lambda reply: marks_in(reply).kind)
        yield how_to_keep(params.rate.ledger)
        replies = known_replies(ledger, journal_path())
    yield from result_lines(matches, replies, (ours, theirs), params)


def contestants(params: Params, arm: str, other: str | None) -> tuple[list[str], list[str]]:
    """Return the runs of both sides. Raises UserError if there are none, or if they are the same."""
    groups = runs_of({**params.arms, **params.prefer}) | {"base": ["base"]}
    if other is None:
        preferred = [params.prefer[run].arm for run in groups.get(arm, []) if run in params.prefer]
        theirs = list(dict.fromkeys(preferred)) or groups.get(str(params.control), [])
    else:
        theirs = groups.get(other, [])
    for name, runs in ((arm, groups.get(arm, [])), (other, theirs)):
        if not runs:
            unknown = f"{name} is neither an arm nor a preference, or it is a replicate"
            what = unknown if name else "there is no control, so OTHER is needed"
            raise UserError(f"params.yaml: {what}; name one of {', '.join(sorted(groups))}")
    if groups[arm] == theirs:
        raise UserError(f"{arm} cannot be compared with itself; name another arm")
    return groups[arm], theirs


def prompts_and_answers(runs: list[str]) -> pd.DataFrame:
    """Return the prompts and every run's answers, one column each. Raises UserError if there are too few prompts."""
    tables = read_answers(runs)
    first = tables[runs[0]]
    if len(first) < LEAST_PROMPTS:
        raise UserError(f"{ANSWERS}: {len(first)} prompts, at least {LEAST_PROMPTS} are needed; see generate.files")
    return first[["id", "prompt"]].assign(**{run: table["answer"] for run, table in tables.items()})


def pair_up(answers: pd.DataFrame, ours: list[str], theirs: list[str], request: Request) -> list[Match]:
    """Return what to ask about every pair of answers, by our run, their run and prompt."""
    told = read_params(PairPrompt, PROMPT)

    def ask(prompt: str, first: str, second: str) -> Payload:
        user = told.user.format(prompt=prompt, first=first, second=second)
        return request.payload([{"role": "system", "content": told.system}, {"role": "user", "content": user}])

    return [
        Match(None, None) if one == other else Match(ask(prompt, one, other), ask(prompt, other, one))
        for our, their in product(ours, theirs)
        for prompt, one, other in zip(answers["prompt"], answers[our], answers[their], strict=True)
    ]


def make_order(matches: list[Match], replies: pd.DataFrame) -> tuple[Order, int]:
    """Return what is to be asked, and how many different requests there are in all."""
    by_key = {key_of(payload): payload for match in matches for payload in match if payload is not None}
    earlier, payloads = count_earlier(list(by_key), replies), list(by_key.values())
    todo = [payload for key, payload in by_key.items() if key not in replies.index]
    counted = [payloads[place] for place in earlier.places]
    return Order(requests_for(todo), requests_for(counted), earlier), len(by_key)


def requests_for(payloads: list[Payload]) -> Requests:
    return Requests(lambda: iter(payloads), len(payloads))


def marks_in(reply: Reply) -> TwoMarks:
    return two_marks_of(
        *(None if pd.isna(reply[name]) else reply[name] for name in ("reply", "finish_reason", "error"))
    )


def result_lines(
    matches: list[Match], replies: pd.DataFrame, sides: tuple[list[str], list[str]], params: Params
) -> Iterator[str]:
    """Yield the verdicts of `matches` and what they mean; all requests must have a reply."""
    ours, theirs = sides
    shape = (len(ours), len(theirs), len(matches) // (len(ours) * len(theirs)))
    keys = {key_of(payload) for match in matches for payload in match if payload is not None}
    marks = {key: marks_in(replies.loc[key]) for key in sorted(keys)}
    straight = np.array([who_won(match.straight, marks) for match in matches]).reshape(shape)
    swapped = -np.array([who_won(match.swapped, marks) for match in matches]).reshape(shape)
    asked = np.array([match.straight is not None for match in matches]).reshape(shape)
    kinds = Counter(mark.kind for mark in marks.values() if mark.kind != OK)
    if kinds:
        yield f"replies without two marks: {', '.join(f'{kind} {n:,}' for kind, n in sorted(kinds.items()))}"
    yield from tally_lines(tally(straight, swapped, asked, params.compare), shape, ours[0], theirs[0])


def who_won(payload: Payload | None, marks: dict[str, TwoMarks]) -> float:
    """Return 1 if the first answer has the higher mark, -1 if the second, 0 for a tie, NaN without marks."""
    if payload is None:
        return 0.0
    first, second, kind = marks[key_of(payload)]
    return float(np.sign(first - second)) if kind == OK else float("nan")


def tally_lines(found: Tally, shape: tuple[int, int, int], ours: str, theirs: str) -> Iterator[str]:
    if found.left_out:
        yield f"prompts left out because of these replies: {found.left_out}"
    yield f"{ours}: {found.wins:,} wins, {found.losses:,} losses, {found.ties:,} ties"
    if not np.isnan(found.flips):
        flips = f"the order changes the winner of {100 * found.flips:.1f} %"
        yield f"pairs with a winner in both orders: {found.decided:,}; {flips}"
    if not np.isnan(found.first_wins):
        yield f"winners that came first: {100 * found.first_wins:.1f} % (50 % means no bias)"
    prompts = shape[2] - found.left_out
    over = f"{prompts} prompts and {shape[0]} x {shape[1]} runs"
    if min(shape[:2]) < 2:
        over = f"{prompts} prompts only; other runs of the same arms may be judged otherwise"
    score = "{est:.4f} [{lo:.4f}, {hi:.4f}]".format(**found.score)
    yield f"winning score of {ours} (0 to 2, 1 is parity): {score}, a 95 % interval over {over}"
    yield conclusion(found, ours, theirs)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.judge", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("arm")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--yes", action="store_true", help="ask, and pay")
    options = parser.parse_args(words)
    return print_as_it_goes(judge_arms(options.arm, options.other, options.yes), alone=options.yes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
