"""Fetch the benchmark: the files that its tasks read.

    data/benchmark_inputs/<task>/<split>.jsonl or the hub -> data/benchmark/<task>/<split>.jsonl

KoBEST is `skt/kobest_v1` on the hub (Kim et al. 2022, arXiv 2204.04541). Any other task is read from the repository
that lm-evaluation-harness names: HAE-RAE `HAERAE-HUB/HAE_RAE_BENCH`, KMMLU `HAERAE-HUB/KMMLU`, CLIcK `EunsuKim/CLIcK`.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.lib.core.artifacts import atomic, read_jsonl, write_jsonl
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.evaluation.kobest import KOBEST, KobestTask
from stages.lib.evaluation.tasks import Task, find_task
from stages.lib.models.hub import load_split, snapshot

log = logging.getLogger("stages")
Items = list[dict[str, Any]]


class FetchBenchmark(Section):
    from_: Literal["files", "hub"] = Field(alias="from")
    inputs: str
    """Folder with <task>/<split>.jsonl. For the hub, any folder in git."""
    revisions: dict[str, str | None]
    """For the hub: the commit hash of every repository that a task is read from."""


class Tasks(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    tasks: Annotated[list[str], Field(min_length=1)]


class Params(Section):
    fetch_benchmark: FetchBenchmark
    evaluate: Tasks


def fetch_benchmark(params: Params, inputs: Path, benchmark: Path) -> None:
    settings = params.fetch_benchmark

    @cache
    def local(repository: str) -> Path:
        where = f"fetch_benchmark.revisions.{repository}"
        return snapshot("dataset", where, repository, settings.revisions.get(repository))

    def items(task: Task, split: str) -> Items:
        if settings.from_ == "files":
            return read_task_items(inputs, task, split)
        return list(load_split("fetch_benchmark", task.repository, local(task.repository), task.config, split))

    with atomic(benchmark) as scratch:
        for task in map(find_task, params.evaluate.tasks):
            for split in task.splits:
                rows = checked_items(items(task, split), task.name, split)
                write_jsonl(scratch / task.name / f"{split}.jsonl", rows)
                log.info("%s, %s: %d items", task.name, split, len(rows))


def read_task_items(inputs: Path, task: Task, split: str) -> Items:
    path = inputs / task.name / f"{split}.jsonl"
    try:
        return read_jsonl(path)
    except FileNotFoundError:
        files = f"<task>/{{{','.join(task.splits)}}}.jsonl"
        raise UserError(f"{path}: missing; fetch_benchmark.inputs needs {files}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON Lines in UTF-8: {error}") from error


def checked_items(rows: Items, task: str, split: str) -> Items:
    """Return the items; of KoBEST's, only the columns in `KOBEST`.

    Raises UserError if the split is empty, an item lacks a column, or a label is not one of KoBEST's.
    """
    where = f"benchmark {task}/{split}"
    if not rows:
        raise UserError(f"{where}: no items")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            names = ", ".join(KOBEST[task].columns) if task in KOBEST else "columns"
            raise UserError(f"{where}, item {number}: expected an object with {names}, got {row!r}")
        if task in KOBEST:
            check_kobest_item(row, KOBEST[task], f"{where}, item {number}")
    return [{column: row[column] for column in KOBEST[task].columns} for row in rows] if task in KOBEST else rows


def check_kobest_item(row: dict[str, Any], task: KobestTask, where: str) -> None:
    missing = [column for column in task.columns if row.get(column) is None]
    if missing:
        expected, got = ", ".join(task.columns), ", ".join(row)
        raise UserError(f"{where}: lacks {', '.join(missing)}; expected {expected}, got {got}")
    if row["label"] not in range(task.choices):
        raise UserError(f"{where}: label: expected 0 to {task.choices - 1}, got {row['label']!r}")


if __name__ == "__main__":
    run(fetch_benchmark, Params, offline=False)
