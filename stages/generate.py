"""Let one model answer every prompt, greedily.

    models/<arm> (or models/hub/base), models/hub/base, data/prompts -> data/answers/<arm>.parquet

A prompt is written in the format that the arms are trained with (`train.format`), for the base too, which may have no
format of its own: so all models read the same text. An answer depends on its prompt only, never on the other prompts.
"""

import logging
from pathlib import Path
from typing import Literal

import pyarrow as pa

from stages.lib.core.artifacts import write_table
from stages.lib.core.params import Positive, Section
from stages.lib.core.runner import run
from stages.lib.evaluation.prompts import read_prompts
from stages.lib.models.loading import Dtype, LoadConfig, load_tokenizer
from stages.lib.models.lora import load_network
from stages.lib.text.chat_format import FormatName, set_format
from stages.lib.text.conversations import Turn

log = logging.getLogger("stages")
ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("constraints", pa.string()),
        ("final", pa.string()),
        ("answer", pa.string()),
        ("tokens", pa.int64()),
        ("ended", pa.bool_()),
    ]
)
"""`constraints`: a JSON list. `tokens`: how many were written, without the end token. `ended`: false if
`max_new_tokens` cut the answer."""


class Generate(Section):
    prompts: str
    """Folder of the prompts: in git, or added with `dvc add`."""
    files: list[str]
    """The files of that folder to answer; with none, no model is loaded."""
    max_new_tokens: Positive
    """An answer is cut after this many tokens."""
    batch_tokens: Positive
    """Most tokens of a batch, prompts and answers together; but a batch never has fewer than 8 answers."""
    dtype: Dtype
    """Of the weights and of the computation."""
    quantize: Literal["nf4"] | None
    """Weights of the base and all arms in 4 bits. Set it as `evaluate.quantize`: otherwise another network answers than
    the one that is evaluated. Null for a base that was saved in 4 bits, to which `dtype` does not apply either."""

    def load_config(self) -> LoadConfig:
        return LoadConfig(dtype=self.dtype, quantize=self.quantize)


class Format(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    format: FormatName
    end: str | None


class Params(Section):
    threads: Positive
    portable: bool = False
    generate: Generate
    train: Format


def generate(params: Params, arm: str, model: Path, base: Path, prompts: Path, answers: Path) -> None:
    settings = params.generate
    asked = read_prompts(prompts, settings.files)
    if not asked:
        log.info("%s: no prompts", arm)
        write_table(answers, {name: [] for name in ANSWERS.names}, ANSWERS)
        return
    tokenizer = load_tokenizer(model)
    set_format(tokenizer, params.train.format, params.train.end, model)
    from stages.lib.scoring.generation import end_ids_of, greedy, prompt_ids

    texts = {prompt.id: prompt_ids(tokenizer, [Turn("user", prompt.prompt)]) for prompt in asked}
    network = load_network(model, base, settings.load_config(), params.threads)
    stops = end_ids_of(network, tokenizer)
    found = greedy(network, texts, stops, settings.max_new_tokens, settings.batch_tokens, f"{arm}, batches of answers")
    columns = {
        "id": list(texts),
        "prompt": [prompt.prompt for prompt in asked],
        "constraints": [prompt.constraints_json() for prompt in asked],
        "final": [prompt.final for prompt in asked],
        "answer": [tokenizer.decode(one.tokens).strip() for one in found],
        "tokens": [len(one.tokens) for one in found],
        "ended": [one.ended for one in found],
    }
    write_table(answers, columns, ANSWERS)
    log.info("%s: %d answers, %d ended by themselves", arm, len(found), sum(one.ended for one in found))


if __name__ == "__main__":
    run(generate, Params)
