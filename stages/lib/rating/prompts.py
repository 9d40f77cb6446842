"""What a judge is told: a prompt, which is a file prompts/<name>.yaml, and a row's text.

A prompt has a system text and a request. The request follows the row's text, as in KoRAE (gauss5930/KoRAE @ 63c28cd,
rating/rating.py), and states the only scale: marks from 0 to 10. Unlike there, the judge sees the row's own system
text, because an answer may depend on it.
"""

from pathlib import Path

import pyarrow as pa

from stages.lib.core.errors import UserError
from stages.lib.core.params import Section, read_params
from stages.lib.text.conversations import Turn, turns_of

PROMPTS = Path(__file__).parent / "prompts"


class Prompt(Section):
    system: str
    request: str


def messages_of(prompt: str, corpus: pa.Table) -> list[list[dict[str, str]]]:
    """Return the chat messages, a system's and a user's, that ask a judge to rate each row [N].

    `corpus` has the columns instruction, output and turns; a conversation is shown whole. Raises UserError if there is
    no such prompt.
    """
    told = read_prompt(prompt)
    return [
        [
            {"role": "system", "content": told.system},
            {"role": "user", "content": f"{text_of_turns(turns_of(row))}\n\n{told.request}"},
        ]
        for row in corpus.select(["instruction", "output", "turns"]).to_pylist()
    ]


def read_prompt(name: str) -> Prompt:
    path = PROMPTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in PROMPTS.glob("*.yaml")))
        raise UserError(f"params.yaml: rate.prompt: {path} does not exist; write it, or use one of {known}")
    return read_params(Prompt, path)


def text_of_turns(turns: list[Turn]) -> str:
    """Return the turns as text, each under its role, with KoRAE's headings."""
    return "\n\n".join(f"### {turn.role.capitalize()}:\n{turn.text}" for turn in turns)
