"""Pay a judge for marks: `python -m tools.ask [--yes] [--again N] [--union REV]`.

Without `--yes` it asks nobody, and prints what asking would cost. With it, it asks the server of `ask.url` for each
reply that `rate` needs and the ledger (`rate.ledger`) does not have, with the API key in the environment variable that
`ask.key` names. `--again N` asks a second time about N rows, to measure how far the judge agrees with itself. `--union
REV` asks nobody: it copies the replies of another commit's ledger, such as a colleague's branch.

Every reply is kept in .checkpoints/ask as it comes; at the end, or when the next run starts, they become a file of the
ledger.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.lib.core.artifacts import atomic, read_arrow
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.rating.ledger import content_hash, found_replies, keys_of, payloads_of
from stages.lib.rating.marks import OK, mark_of
from stages.lib.selection.candidates import may_be_candidates
from stages.lib.selection.reviews import match_reviews, read_reviews
from stages.lib.text.hashing import uniform_hash
from stages.rate import Rate
from tools.paying import (
    Order,
    Paying,
    Requests,
    count_earlier,
    how_to_keep,
    how_to_pay,
    open_ledger,
    pay,
    price_lines,
    print_as_it_goes,
    require_own,
    require_whole,
)
from tools.replies import Reply


class Plan(NamedTuple):
    sample: int
    needed: int
    """Rows that need a reply, or that are to be asked about again."""
    payloads: int
    """Different payloads among them."""
    order: Order


def run_command(options: argparse.Namespace) -> Iterator[str]:
    """Do what the command line says, and yield what there is to say about it."""
    params = read_params(Paying)
    ledger = Path(params.rate.ledger)
    if options.union:
        require_whole(ledger)
        require_own(ledger)
        yield from unite(ledger, options.union)
        yield from next_steps(params.rate)
        return
    replies = yield from open_ledger(ledger, options.yes)
    plan = make_plan(params.rate, replies, options.again)
    yield from plan_lines(plan, params.rate)
    yield from price_lines(plan.order, params)
    if plan.order.todo.total and not options.yes:
        yield how_to_pay("tools.ask", params.ask.url)
        return
    if plan.order.todo.total:
        yield from pay(plan.order.todo, params, kind_of_mark)
    yield from next_steps(params.rate)


def unite(ledger: Path, revision: str) -> Iterator[str]:
    """Copy the files of the ledger at another revision that are not here, even if nobody has pulled them."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        there = DVCFileSystem(".", rev=revision)
        paths = [path for path in there.find(str(ledger)) if path.endswith(".parquet")]
        missing = [path for path in paths if not (ledger / Path(path).name).is_file()]
        for path in missing:
            with atomic(ledger / Path(path).name) as scratch:
                there.get_file(path, str(scratch))
                if content_hash(scratch) != Path(path).stem:
                    raise UserError(f"{path} at {revision}: its content does not match its name; it was not copied")
    except (DvcException, SCMError, OSError) as error:
        raise UserError(f"{ledger} at {revision}: {error}; is it pushed, and is the revision fetched?") from None
    if not paths:
        raise UserError(f"{ledger} at {revision}: no replies; is rate.ledger the same folder there?")
    yield f"{len(missing)} files of replies copied from {revision}; {len(paths) - len(missing)} were here already"


def make_plan(settings: Rate, replies: pd.DataFrame, again: int | None) -> Plan:
    """Return what is to be asked: a first reply to each row that needs one, or a second to `again` rows with a mark."""
    rows, sample = needed_rows(), 0
    keys = keys_of(rows, settings.prompt, settings.request)
    earlier = count_earlier(keys, replies)
    counted = requests_about(rows.take(pa.array(earlier.places, pa.int64())), settings)
    if again is not None:
        marked = take_where(rows, found_replies(replies, keys)["kind"] == OK)
        drawn = np.argsort(uniform_hash(marked["id"].to_pylist(), "again"), kind="stable")[:again]
        rows, sample = marked.take(pa.array(np.sort(drawn))), 1
        keys = keys_of(rows, settings.prompt, settings.request, sample)
    asked = pd.Series(keys, dtype=str)
    todo = take_where(rows, ~asked.duplicated() & ~asked.isin(replies.index))
    return Plan(sample, len(rows), asked.nunique(), Order(requests_about(todo, settings, sample), counted, earlier))


def requests_about(rows: pa.Table, settings: Rate, sample: int = 0) -> Requests:
    return Requests(lambda: payloads_of(rows, settings.prompt, settings.request, sample), len(rows))


def take_where(rows: pa.Table, wanted: pd.Series) -> pa.Table:
    return rows.filter(pa.array(wanted.to_numpy(dtype=bool)))


def needed_rows(data: Path = Path("data")) -> pa.Table:
    """Return the rows of raw that may become candidates.

    `rate` needs a reply for each of them, reviewed out or not, so that a review rates nothing again. If a row is
    reviewed out, the next row with its instruction may become a candidate, and is asked about too.
    """
    paths = [data / f"{name}.parquet" for name in ("raw", "leaks", "duplicates")]
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"{', '.join(absent)}: missing; run `dvc repro dedup decontaminate`, or `dvc pull`")
    corpus = read_arrow(paths[0], "id", "instruction", "output", "turns")
    flags = [read_arrow(path, "id", "drop").to_pandas() for path in paths[1:]]
    texts = corpus.select(["instruction", "id"]).to_pandas()
    is_out, _ = match_reviews(read_reviews(data / "reviews.jsonl"), corpus)
    reviewed = pd.DataFrame({"id": texts["id"], "drop": is_out})
    first, instead = (may_be_candidates(texts["instruction"], texts["id"], *flags, *more) for more in ([], [reviewed]))
    return corpus.filter(pa.array(first | instead))


def plan_lines(plan: Plan, settings: Rate) -> Iterator[str]:
    """Yield how much there is to ask."""
    count = plan.order.todo.total
    what = "rows are to be rated again by" if plan.sample else "rows may become candidates and need a reply from"
    requests = f"{settings.request.model} with the prompt {settings.prompt}: {plan.payloads:,} requests"
    yield f"{plan.needed:,} {what} {requests}"
    yield f"{plan.payloads - count:,} of them are in {settings.ledger}; {count:,} are to be asked"


def kind_of_mark(reply: Reply) -> str:
    return mark_of(reply["reply"], reply["finish_reason"], reply["error"]).kind


def next_steps(settings: Rate) -> Iterator[str]:
    if settings.judge != "ledger":
        yield f"params.yaml: rate.judge is {settings.judge}; set it to `ledger` to use the replies"
    yield f"{how_to_keep(settings.ledger)}, `dvc repro`"


def read_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.ask", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--yes", action="store_true", help="ask, and pay")
    parser.add_argument("--again", type=int, metavar="N", help="ask a second time about N rows that have a mark")
    parser.add_argument("--union", metavar="REV", help="copy the replies of the ledger at REV")
    options = parser.parse_args(words)
    if options.again is not None and options.again < 1:
        parser.error("--again needs a number of rows, at least 1")
    return options


def main(words: list[str]) -> int:
    options = read_options(words)
    return print_as_it_goes(run_command(options), alone=options.yes or options.union is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
