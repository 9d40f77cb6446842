"""What a judge is asked, and where."""

from typing import Annotated

from pydantic import Field

from stages.lib.core.params import Count, Positive, Section

Price = Annotated[float, Field(ge=0)]


class Request(Section):
    model: str
    """The judge's name, as its server calls it."""
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Positive
    """Most tokens of a reply."""
    seed: int | None


class PricePerMillion(Section):
    input: Price
    """Price of a million tokens of prompts."""
    output: Price
    """Price of a million tokens of replies."""
    currency: str


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
    """How often a request is repeated if the server is busy or fails."""
    price_per_million: PricePerMillion
