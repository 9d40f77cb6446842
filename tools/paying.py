"""What every command shares that pays a judge: the price, the asking, and the ledger that keeps the replies.

Every reply is kept in .checkpoints/ask as it comes; at the end, or when the next run starts, they become a file of the
ledger (`rate.ledger`).
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd

from stages.lib.core.errors import UserError
from stages.lib.core.params import Section
from stages.lib.core.processes import only_one
from stages.lib.core.runner import CHECKPOINTS, checkpoints_folder
from stages.lib.rating.ledger import REPLIES, read_ledger, write_part
from stages.lib.rating.request import Ask
from stages.rate import Rate
from tools.replies import Asked, Payload, Reply, ask_all, read_key, require_openai

BUNDLED = Path("data/ledger")
"""The empty ledger in git. It is there only so that `rate` runs without one of your own."""
MEASURED = 500
"""Prompts whose tokens are counted to estimate those of all."""


class Paying(Section):
    rate: Rate
    ask: Ask


class Requests(NamedTuple):
    payloads: Callable[[], Iterator[Payload]]
    """Makes them anew at every call, because all of them at once may need too much memory."""
    total: int

    def texts(self) -> Iterator[str]:
        for payload in self.payloads():
            yield "\n".join(message["content"] for message in payload["messages"])


class Earlier(NamedTuple):
    """What the ledger says about requests like those that are to be asked."""

    places: list[int]
    """Some requests, at most MEASURED, whose prompts the judge's server has counted."""
    prompt_tokens: int
    """How many tokens these have."""
    reply_tokens: float
    """Mean tokens of a reply; NaN without replies."""


class Order(NamedTuple):
    todo: Requests
    """What the ledger has no reply to."""
    counted: Requests
    """The requests of `earlier.places`."""
    earlier: Earlier


def journal_path() -> Path:
    return checkpoints_folder(CHECKPOINTS / "ask") / "replies.jsonl"


def open_ledger(ledger: Path, paying: bool) -> Generator[str, None, pd.DataFrame]:
    """Return the replies that there are, and yield what was found. Raises UserError if the ledger cannot be used."""
    require_whole(ledger)
    if paying:
        require_own(ledger)
        if lost := write_journal(journal_path(), ledger):
            yield f"an earlier run was killed; the {lost:,} replies that it left are now in {ledger}"
    return known_replies(ledger, journal_path())


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


def known_replies(ledger: Path, journal: Path) -> pd.DataFrame:
    """Return the replies of the ledger, if there is one, and those that a killed run left."""
    found = read_ledger(ledger) if ledger.is_dir() else REPLIES.empty_table().to_pandas().set_index("key")
    lost = pd.DataFrame(read_journal(journal), columns=REPLIES.names).set_index("key")
    return pd.concat([found, lost[~lost.index.isin(found.index)]]) if len(lost) else found


def count_earlier(keys: Sequence[str], replies: pd.DataFrame) -> Earlier:
    """Return what the replies with these keys cost."""
    known = replies[["prompt_tokens", "reply_tokens"]].reindex(keys).reset_index(drop=True)
    tokens = known["prompt_tokens"].dropna()[:MEASURED]
    return Earlier(list(tokens.index), int(tokens.sum()), float(known["reply_tokens"].mean()))


def price_lines(order: Order, params: Paying) -> Iterator[str]:
    """Yield what it costs to ask; nothing if there is nothing to ask."""
    if not (count := order.todo.total):
        return
    characters = sum(map(len, order.todo.texts()))
    per_character, how = tokens_per_character(order, Path("models/hub") / params.rate.model)
    prompts, most = characters * per_character, count * params.rate.request.max_tokens
    yield f"prompts: about {prompts:,.0f} tokens for {characters:,} characters ({per_character:.3g} each, {how})"
    usual = order.earlier.reply_tokens
    expected = most if np.isnan(usual) else count * usual
    yield f"replies: at most {most:,} tokens (max_tokens), about {expected:,.0f} {mean_of(usual)}"
    yield f"price: about {money(prompts, expected, params.ask)}, at most {money(prompts, most, params.ask)}"


def tokens_per_character(order: Order, folder: Path) -> tuple[float, str]:
    """Return the tokens of a prompt per character, and how they were counted.

    The judge's server has counted them if the ledger has replies; otherwise the tokenizer in `folder` does.
    """
    if order.earlier.prompt_tokens:
        characters = sum(map(len, order.counted.texts()))
        return order.earlier.prompt_tokens / characters, f"as the judge counted {order.counted.total:,} earlier prompts"
    if not folder.is_dir():
        return 1.0, f"a guess, because {folder} is not here"
    from stages.lib.models.loading import load_tokenizer

    texts = [text for text, _ in zip(order.todo.texts(), range(MEASURED), strict=False)]
    tokens = sum(map(len, load_tokenizer(folder)(texts)["input_ids"]))
    return tokens / sum(map(len, texts)), f"by the tokenizer of {folder}; the judge's may count differently"


def mean_of(usual: float) -> str:
    return "(there is no earlier reply to go by)" if np.isnan(usual) else f"(earlier replies have {usual:.3g} each)"


def money(prompt_tokens: float, reply_tokens: float, settings: Ask) -> str:
    price = settings.price_per_million
    cost = price.cost(prompt_tokens, reply_tokens)
    return f"{cost:,.2f} {price.currency}" if cost >= 1 else f"{cost:.2g} {price.currency}"


def how_to_pay(command: str, url: str) -> str:
    return f"nothing was asked; `python -m {command} {' '.join([*sys.argv[1:], '--yes'])}` asks {url}"


def pay(todo: Requests, params: Paying, kind_of: Callable[[Reply], str]) -> Iterator[str]:
    """Ask, and yield what came back and what it cost. Raises UserError if something is still to be asked."""
    require_openai()
    key = read_key(params.ask.key, os.environ.get(params.ask.key))
    journal, ledger = journal_path(), Path(params.rate.ledger)
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("w", encoding="ascii") as file:
        asked = ask_all(todo.payloads(), todo.total, params.ask, key, lambda reply: write_line(file, reply))
    came = read_journal(journal)
    write_journal(journal, ledger)
    kinds = Counter(map(kind_of, came))
    prompts, replies = (sum(reply[name] or 0 for reply in came) for name in ("prompt_tokens", "reply_tokens"))
    yield f"{len(came):,} requests were answered: {', '.join(f'{kind} {n:,}' for kind, n in sorted(kinds.items()))}"
    yield f"cost: {prompts:,} tokens of prompts, {replies:,} of replies, {money(prompts, replies, params.ask)}"
    require_all(asked, todo.total - len(came))


def how_to_keep(ledger: str) -> str:
    return f"next: `dvc add {ledger}`, commit {ledger}.dvc, `dvc push`"


def require_all(asked: Asked, missing: int) -> None:
    """Raise UserError if requests are left, and say why."""
    if missing:
        why = f"stopped because of {asked.stopped}" if asked.stopped else most_common(asked.failures)
        raise UserError(
            f"{missing:,} requests are still to be asked ({why}); correct what you can, and run the command again"
        )


def most_common(failures: Counter[str]) -> str:
    return "; ".join(f"{count:,} x {reason}" for reason, count in failures.most_common(3))


def write_line(file: IO[str], reply: Reply) -> None:
    file.write(json.dumps(reply) + "\n")
    file.flush()


def read_journal(journal: Path) -> list[Reply]:
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


def print_as_it_goes(lines: Iterator[str], alone: bool) -> int:
    """Print the lines of a command, or its error; return the exit status. `alone`: no other may write the ledger."""
    try:
        with only_one("ask") if alone else nullcontext():
            for line in lines:
                print(line, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the replies that came back are kept, and the next run asks for the others", file=sys.stderr)
        return 130
    return 0
