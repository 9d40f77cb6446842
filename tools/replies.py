"""Ask any server that has OpenAI's API for replies, several at a time.

The SDK repeats a request that fails for now (429, 5xx, timeout), after a pause or after the server's Retry-After.
What happens then:

- a reply, or a refusal that will never change (400, 422), is kept, the refusal as an `error`;
- a reply that is no chat completion (cut off, empty) is asked for once more, then kept as an `error`;
- a request that still fails is not kept: the next run asks again;
- a key or an address that the server does not accept stops everything.

If many requests in a row come back without a reply, the fault lies with the server or the settings: asking stops, and
no `error` among them is kept.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from tqdm import tqdm

from stages.lib.core.errors import UserError
from stages.lib.rating.request import Ask, key_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI

IN_A_ROW = 10
"""If this many requests in a row get no reply, what they ask is not to blame."""
Payload = dict[str, Any]
Reply = dict[str, Any]
"""A row of the ledger."""


class Said(BaseModel):
    content: str | None
    """None if the server refuses to answer. A message without this field is not a message."""


class Choice(BaseModel):
    message: Said
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """What a chat completion must have."""

    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage = Usage()
    model: str | None = None


class Failure(NamedTuple):
    """A request that may succeed another time."""

    reason: str
    final: bool = False
    """Whether every other request would fail now, too."""


class Asked:
    """What has come back, and what has been kept of it."""

    def __init__(self, keep: Callable[[Reply], None]) -> None:
        self.keep = keep
        self.failures: Counter[str] = Counter()
        self.stopped: str | None = None
        """Why nothing more is asked."""
        self.without_reply = 0
        """Requests without a reply since the last reply."""
        self.doubtful: list[Reply] = []
        """Errors since the last reply, not kept yet."""

    def take(self, found: Reply | Failure) -> None:
        if not isinstance(found, Failure) and found["error"] is None:
            self.settle()
            self.keep(found)
            return
        self.without_reply += 1
        if isinstance(found, Failure):
            self.failures[found.reason] += 1
        else:
            self.doubtful.append(found)
        if isinstance(found, Failure) and found.final:
            self.stopped = found.reason
        elif self.without_reply >= IN_A_ROW:
            reason = found.reason if isinstance(found, Failure) else found["error"]
            self.stopped = self.stopped or f"{self.without_reply} requests in a row had no reply, the last: {reason}"

    def settle(self) -> None:
        """Keep the errors, because the server answers other requests."""
        for error in self.doubtful:
            self.keep(error)
        self.doubtful, self.without_reply = [], 0


def ask_all(payloads: Iterable[Payload], total: int, settings: Ask, key: str, keep: Callable[[Reply], None]) -> Asked:
    """Ask for a reply to every payload, at most `settings.concurrency` at a time; `keep` gets each reply at once."""
    asked = Asked(keep)
    asyncio.run(share_out(iter(payloads), total, settings, key, asked))
    if not asked.stopped:
        asked.settle()
    return asked


async def share_out(payloads: Iterator[Payload], total: int, settings: Ask, key: str, asked: Asked) -> None:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=settings.url, api_key=key, timeout=settings.timeout, max_retries=settings.retries)
    seconds = 0.1 if sys.stderr.isatty() else 5  # so that the bar does not flood a log
    with tqdm(total=total, desc="replies", unit="", mininterval=seconds) as bar:

        async def work() -> None:
            for payload in payloads:
                if asked.stopped:
                    return
                found = await reply_to(client, payload)
                asked.take(without_key(found, key))
                bar.update()

        async with client, asyncio.TaskGroup() as group:
            for _ in range(settings.concurrency):
                group.create_task(work())


async def reply_to(client: "AsyncOpenAI", payload: Payload) -> Reply | Failure:
    import openai

    problem = ""
    for _ in range(2):
        try:
            raw = await client.chat.completions.with_raw_response.create(**sent(payload))
            return row(payload, Completion.model_validate_json(raw.http_response.content))
        except ValidationError as error:
            problem = f"no chat completion: {error.errors()[0]['msg']}: {raw.http_response.text[:200]!r}"
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return row(payload, error=str(error))
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            return Failure(str(error), final=True)
        except openai.OpenAIError as error:
            return Failure(str(error))
    return row(payload, error=problem)


def sent(payload: Payload) -> Payload:
    """Return what is sent to the server: with a seed, each sample has its own."""
    body = {name: value for name, value in payload.items() if name != "sample" and value is not None}
    return body | ({"seed": body["seed"] + payload["sample"]} if "seed" in body else {})


def row(payload: Payload, completion: Completion | None = None, error: str | None = None) -> Reply:
    choice = completion.choices[0] if completion else None
    usage = completion.usage if completion else Usage()
    return {
        "key": key_of(payload),
        "reply": choice.message.content if choice else None,
        "finish_reason": choice.finish_reason if choice else None,
        "model": completion.model if completion else None,
        "error": error,
        "prompt_tokens": usage.prompt_tokens,
        "reply_tokens": usage.completion_tokens,
    }


def without_key(found: Reply | Failure, key: str) -> Reply | Failure:
    """Return what came back without the API key, which a server may repeat in an error."""
    if isinstance(found, Failure):
        return found._replace(reason=found.reason.replace(key, "***"))
    return {name: text.replace(key, "***") if isinstance(text, str) else text for name, text in found.items()}


def require_openai() -> None:
    if find_spec("openai") is None:
        raise UserError("asking a judge needs openai; run `pip install -c constraints.txt -e '.[ask]'`")


def read_key(variable: str, key: str | None) -> str:
    """Return the API key. Raises UserError, without the key, if it is missing or cannot be one."""
    if not key:
        raise UserError(
            f"the environment variable {variable} (ask.key) is not set; `export {variable}=...`, with any value if the "
            "server asks for no key"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"the environment variable {variable} has characters that no key has; set it again")
    return key
