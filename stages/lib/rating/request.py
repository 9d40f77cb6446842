"""What a judge is asked, and where."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field

from stages.lib.core.params import Count, Positive, Section

Price = Annotated[float, Field(ge=0)]
MILLION = 1e6


class Request(Section):
    model: str
    """The judge's name, as its server calls it."""
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Positive
    """Most tokens of a reply."""
    seed: Annotated[int | None, Field(ge=0, lt=2**32)]
    """Sent with the first request about a row; the second request has the next number. Null sends none."""

    def payload(self, messages: list[dict[str, str]], sample: int = 0) -> dict[str, Any]:
        """Return all that a reply depends on. `sample` is 1 if the judge is asked again."""
        return self.model_dump() | {"messages": messages, "sample": sample}


def key_of(payload: dict[str, Any]) -> str:
    """Return the name of a payload in the ledger, the same whatever the server, account and order of keys."""
    text = json.dumps(payload, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class PricePerMillion(Section):
    input: Price
    """Price of a million tokens of prompts."""
    output: Price
    """Price of a million tokens of replies."""
    currency: str

    def cost(self, prompt_tokens: float, reply_tokens: float) -> float:
        """Return what this many tokens cost, in the currency."""
        return (prompt_tokens * self.input + reply_tokens * self.output) / MILLION


class Ask(Section):
    url: str
    """Base URL of any server with OpenAI's API."""
    key: str
    """The environment variable that has the API key."""
    concurrency: Positive
    """Most requests at a time."""
    timeout: Positive
    """Seconds to wait for a reply."""
    retries: Count
    """Most times that a request is repeated if the server is busy or fails."""
    price_per_million: PricePerMillion
