"""Pay a judge for marks: `python -m tools.ask [--yes] [--again N] [--union REV]`.

Without `--yes` it asks nobody, and prints what asking would cost. With it, it asks the server of `ask.url` for each
reply that `rate` needs and the ledger (`rate.ledger`) does not have, with the API key in the environment variable that
`ask.key` names. `--again N` asks a second time about N rows, to measure how far the judge agrees with itself. `--union
REV` asks nobody: it copies the replies of another commit's ledger, such as a colleague's branch.

Every reply is kept in .checkpoints/ask as it comes; at the end, or when the next run starts, they become a file of the
ledger.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.lib.core.artifacts import atomic, read_arrow
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section, read_params
from stages.lib.core.processes import only_one
from stages.lib.core.runner import CHECKPOINTS, checkpoints_folder
from stages.lib.rating.ledger import (
    REPLIES,
    content_hash,
    found_replies,
    keys_of,
    payloads_of,
    read_ledger,
    write_part,
)
from stages.lib.rating.marks import OK, mark_of
from stages.lib.rating.request import Ask
from stages.lib.selection.candidates import may_be_candidates
from stages.lib.selection.reviews import match_reviews, read_reviews
from stages.lib.text.hashing import uniform_hash
from stages.rate import Rate
from tools.replies import Asked, ask_all, read_key, require_openai

BUNDLED = Path("data/ledger")
"""The empty ledger in git. It is there only so that `rate` runs without one of your own."""
MEASURED = 500
"""Rows whose tokens are counted to estimate those of all."""


class Params(Section):
    rate: Rate
    ask: Ask


class Plan(NamedTuple):
    rows: pa.Table
    """Rows of raw, each with a different payload that the ledger does not have."""
    sample: int
    needed: int
    """Rows that need a reply, or that are to be asked about again."""
    payloads: int
    """Different payloads among them."""
    counted: pa.Table
    """Some rows whose prompt the judge's server has counted already."""
    counted_tokens: int
    """How many tokens their prompts have."""


def run_command(options: argparse.Namespace, params: Params) -> Iterator[str]:
    """Do what the command line says, and yield what there is to say about it."""
    ledger, journal = Path(params.rate.ledger), checkpoints_folder(CHECKPOINTS / "ask") / "replies.jsonl"
    require_whole(ledger)
    if options.yes or options.union:
        require_own(ledger)
    if options.union:
        yield from unite(ledger, options.union)
        yield from next_steps(params)
        return
    if options.yes and (lost := write_journal(journal, ledger)):
        yield f"an earlier run was killed; the {lost:,} replies that it left are now in {ledger}"
    replies = known_replies(ledger, journal)
    plan = make_plan(params.rate, replies, options.again)
    yield from price_lines(plan, params, replies)
    if options.yes and len(plan.rows):
        require_openai()
        key = read_key(params.ask.key, os.environ.get(params.ask.key))
        yield from pay(plan, params, key, journal)
    elif len(plan.rows):
        yield f"nothing was asked; `python -m tools.ask {' '.join([*sys.argv[1:], '--yes'])}` asks {params.ask.url}"
    else:
        yield from next_steps(params)


def require_own(ledger: Path) -> None:
    if ledger == BUNDLED:
        raise UserError(
            f"params.yaml: rate.ledger: {ledger} belongs to the project and stays empty; set it to a folder of your "
            "own, such as data/mine/ledger"
        )


def require_whole(ledger: Path) -> None:
    """Raise UserError if DVC has replies of this ledger that are not here, because they would be paid for again."""
    pointer = Path(f"{ledger}.dvc")
    if not pointer.is_file():
        return
    from dvc.api import DVCFileSystem

    names = {Path(path).name for path in DVCFileSystem(".").find(str(ledger), dvc_only=True)}
    if missing := sorted(name for name in names if not (ledger / name).is_file()):
        raise UserError(
            f"{pointer} has {len(missing)} files that are not here, such as {missing[0]}, so their replies would be "
            f"paid for again; run `dvc pull {pointer}`"
        )


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


def known_replies(ledger: Path, journal: Path) -> pd.DataFrame:
    """Return the replies of the ledger, if there is one, and those that a killed run left."""
    found = read_ledger(ledger) if ledger.is_dir() else REPLIES.empty_table().to_pandas().set_index("key")
    lost = pd.DataFrame(read_journal(journal), columns=REPLIES.names).set_index("key")
    return pd.concat([found, lost[~lost.index.isin(found.index)]]) if len(lost) else found


def make_plan(settings: Rate, replies: pd.DataFrame, again: int | None) -> Plan:
    """Return what is to be asked: a first reply to each row that needs one, or a second to `again` rows with a mark."""
    rows, sample = needed_rows(), 0
    if again is not None:
        marks = found_replies(replies, keys_of(rows, settings.prompt, settings.request))
        marked = take_where(rows, marks["kind"] == OK)
        drawn = np.argsort(uniform_hash(marked["id"].to_pylist(), "again"), kind="stable")[:again]
        rows, sample = marked.take(pa.array(np.sort(drawn))), 1
    keys = pd.Series(keys_of(rows, settings.prompt, settings.request, sample), dtype=str)
    todo = ~keys.duplicated() & ~keys.isin(replies.index)
    tokens = replies["prompt_tokens"].reindex(keys).reset_index(drop=True).dropna()[:MEASURED]
    counted = rows.take(pa.array(tokens.index, pa.int64()))
    return Plan(take_where(rows, todo), sample, len(rows), keys.nunique(), counted, int(tokens.sum()))


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


def price_lines(plan: Plan, params: Params, replies: pd.DataFrame) -> Iterator[str]:
    """Yield how much there is to ask, and what it costs."""
    rate, count = params.rate, len(plan.rows)
    what = "rows are to be rated again by" if plan.sample else "rows may become candidates and need a reply from"
    yield f"{plan.needed:,} {what} {rate.request.model} with the prompt {rate.prompt}: {plan.payloads:,} requests"
    yield f"{plan.payloads - count:,} of them are in {rate.ledger}; {count:,} are to be asked"
    if not count:
        return
    characters = count_characters(plan.rows, rate)
    per_character, how = tokens_per_character(plan, rate)
    prompts, most = characters * per_character, count * rate.request.max_tokens
    yield f"prompts: about {prompts:,.0f} tokens for {characters:,} characters ({per_character:.3g} each, {how})"
    usual = replies["reply_tokens"].mean()
    expected = most if np.isnan(usual) else count * float(usual)
    yield f"replies: at most {most:,} tokens (max_tokens), about {expected:,.0f} {mean_of(usual)}"
    yield f"price: about {money(prompts, expected, params.ask)}, at most {money(prompts, most, params.ask)}"


def mean_of(usual: float) -> str:
    return "(the ledger has no reply to go by yet)" if np.isnan(usual) else f"(the ledger's mean is {usual:.3g} each)"


def money(prompt_tokens: float, reply_tokens: float, settings: Ask) -> str:
    price = settings.price_per_million
    cost = price.cost(prompt_tokens, reply_tokens)
    return f"{cost:,.2f} {price.currency}" if cost >= 1 else f"{cost:.2g} {price.currency}"


def count_characters(rows: pa.Table, settings: Rate) -> int:
    return sum(map(len, prompt_texts(rows, settings)))


def prompt_texts(rows: pa.Table, settings: Rate) -> Iterator[str]:
    for payload in payloads_of(rows, settings.prompt, settings.request):
        yield "\n".join(message["content"] for message in payload["messages"])


def tokens_per_character(plan: Plan, settings: Rate) -> tuple[float, str]:
    """Return the tokens of a prompt per character, and how they were counted.

    The judge's server has counted them if the ledger has replies; otherwise the tokenizer of `rate.model` does.
    """
    if plan.counted_tokens:
        characters = count_characters(plan.counted, settings)
        return plan.counted_tokens / characters, f"as the judge counted {len(plan.counted):,} earlier prompts"
    folder = Path("models/hub") / settings.model
    if not folder.is_dir():
        return 1.0, f"a guess, because {folder} is not here"
    from stages.lib.models.loading import load_tokenizer

    texts = list(prompt_texts(plan.rows.slice(0, MEASURED), settings))
    tokens = sum(map(len, load_tokenizer(folder)(texts)["input_ids"]))
    return tokens / sum(map(len, texts)), f"by the tokenizer of {folder}; the judge's may count differently"


def pay(plan: Plan, params: Params, key: str, journal: Path) -> Iterator[str]:
    """Ask, and yield what came back and what it cost. Raises UserError if something is still to be asked."""
    ledger, rate = Path(params.rate.ledger), params.rate
    payloads = payloads_of(plan.rows, rate.prompt, rate.request, plan.sample)
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("w", encoding="ascii") as file:
        asked = ask_all(payloads, len(plan.rows), params.ask, key, lambda reply: write_line(file, reply))
    came = read_journal(journal)
    write_journal(journal, ledger)
    kinds = Counter(mark_of(reply["reply"], reply["finish_reason"], reply["error"]).kind for reply in came)
    prompts, replies = (sum(reply[name] or 0 for reply in came) for name in ("prompt_tokens", "reply_tokens"))
    yield f"{len(came):,} requests were answered: {', '.join(f'{kind} {n:,}' for kind, n in sorted(kinds.items()))}"
    yield f"cost: {prompts:,} tokens of prompts, {replies:,} of replies, {money(prompts, replies, params.ask)}"
    yield from next_steps(params)
    require_all(asked, len(plan.rows) - len(came))


def require_all(asked: Asked, missing: int) -> None:
    """Raise UserError if requests are left, and say why."""
    if missing:
        why = f"stopped because of {asked.stopped}" if asked.stopped else most_common(asked.failures)
        raise UserError(
            f"{missing:,} requests are still to be asked ({why}); correct what you can, and run the command again"
        )


def most_common(failures: Counter[str]) -> str:
    return "; ".join(f"{count:,} x {reason}" for reason, count in failures.most_common(3))


def next_steps(params: Params) -> Iterator[str]:
    ledger = params.rate.ledger
    if params.rate.judge != "ledger":
        yield f"params.yaml: rate.judge is {params.rate.judge}; set it to `ledger` to use the replies"
    yield f"next: `dvc add {ledger}`, commit {ledger}.dvc, `dvc push`, `dvc repro`"


def write_line(file: IO[str], reply: dict[str, Any]) -> None:
    file.write(json.dumps(reply) + "\n")
    file.flush()


def read_journal(journal: Path) -> list[dict[str, Any]]:
    """Return the replies that were written one by one; the last line may be torn."""
    if not journal.is_file():
        return []
    *lines, _torn = journal.read_text(encoding="ascii").split("\n")
    return [json.loads(line) for line in lines]


def write_journal(journal: Path, ledger: Path) -> int:
    """Make the replies of the journal a file of the ledger; return their number."""
    replies = read_journal(journal)
    if replies:
        write_part(ledger, replies)
    journal.unlink(missing_ok=True)
    return len(replies)


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
    try:
        options = read_options(words)
        with only_one("ask") if options.yes or options.union else nullcontext():
            for line in run_command(options, read_params(Params)):
                print(line, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the replies that came back are kept, and the next run asks for the others", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
