"""Show what every model answers to one prompt: `python -m tools.answers [PROMPT]`, where PROMPT is its id.

A mark before each constraint says whether the answer satisfies it: + yes, - no; before a final number, whether it is
right. Without PROMPT, it lists all prompts, each with the number of models that satisfy everything. It reads
data/answers/<name>.parquet of the base, and of the arms and preferences in params.yaml.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.core.artifacts import read_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_yaml
from stages.lib.evaluation.answers import final_answer, mark_answers, reaches
from stages.lib.evaluation.constraints import follows
from tools.output import print_lines

ANSWERS = Path("data/answers")
SHOWN = 60
"""Characters of a prompt in the list."""


def read_answers(models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Return every model's table of answers, by name.

    Raises UserError if a table is missing, has other prompts than the first, or none.
    """
    paths = {model: ANSWERS / f"{model}.parquet" for model in models}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing; run `dvc repro`, or `dvc pull`")
    tables = {model: read_table(path) for model, path in paths.items()}
    first, want = next((model, table[["id", "prompt"]]) for model, table in tables.items())
    for model, table in tables.items():
        if not table[["id", "prompt"]].equals(want):
            raise UserError(f"{paths[model]}: other prompts than in {paths[first]}; run `dvc repro`")
    if want.empty:
        raise UserError(f"{PARAMS}: generate.files names no prompts; name some there, and run `dvc repro`")
    return tables


def side_by_side(prompt: str, tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    """Yield a prompt and every model's answer to it. Raises UserError if there is no such prompt."""
    first = tables["base"]
    if prompt not in set(first["id"]):
        raise UserError(f"no prompt has the id {prompt}; `python -m tools.answers` lists them")
    yield f"{prompt}: {first.set_index('id')['prompt'][prompt]}"
    for name, table in tables.items():
        row = table[table["id"] == prompt].iloc[0].to_dict()
        yield f"\n{name}: {row['tokens']} tokens{'' if row['ended'] else ', cut'}"
        yield from (f"  {mark}" for mark in marks_of_answer(row))
        yield from (f"  > {line}" for line in row["answer"].splitlines() or ["(empty)"])


def marks_of_answer(row: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each constraint, and one for the final number if the prompt has one."""
    for one in json.loads(row["constraints"]):
        followed = follows(one["id"], one["kwargs"], row["prompt"], row["answer"])
        arguments = ", ".join(f"{key}: {value}" for key, value in one["kwargs"].items())
        yield f"{'+' if followed else '-'} {one['id']}{f' ({arguments})' if arguments else ''}"
    if isinstance(row["final"], str):
        right = reaches(row["answer"], row["final"])
        yield f"{'+' if right else '-'} final number: {final_answer(row['answer']) or 'none'}; right is {row['final']}"


def listed_prompts(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    """Yield a line for each prompt: its id, how many models satisfy everything in it, and its beginning."""
    marks = [mark_answers(table) for table in tables.values()]
    whole = sum(((one["followed"] == one["constraints"]) & (one["final"] != 0)).astype(int) for one in marks)
    first = tables["base"]
    width = first["id"].str.len().max()
    yield f"{len(first)} prompts, each with how many of {len(tables)} models satisfy everything in it:"
    for key, text, count in zip(first["id"], first["prompt"], whole, strict=True):
        line = " ".join(text.split())
        yield f"{key:{width}}  {count}  {line[:SHOWN]}{'...' if len(line) > SHOWN else ''}"


def answer_lines(prompt: str | None) -> Iterator[str]:
    params = read_yaml(PARAMS)
    tables = read_answers(["base", *params["arms"], *params["prefer"]])
    yield from side_by_side(prompt, tables) if prompt else listed_prompts(tables)


if __name__ == "__main__":
    sys.exit(print_lines(answer_lines(sys.argv[1] if len(sys.argv) > 1 else None)))
