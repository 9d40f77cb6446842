"""Bring the benchmark: five tasks in KoBEST's columns, three splits each.

    data/benchmark_inputs/<task>/<split>.jsonl or the hub -> data/benchmark/<task>/<split>.jsonl

KoBEST: Kim et al. 2022, arXiv 2204.04541; `skt/kobest_v1` on the hub, one JSONL a split.
"""

import logging
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.lib.artifacts import atomic, read_jsonl, write_jsonl
from stages.lib.hub import load_split, snapshot
from stages.lib.params import Section
from stages.lib.stage import run
from stages.lib.stop import Stop

log = logging.getLogger("stages")
SPLITS = ("train", "validation", "test")
COLUMNS = {
    "boolq": ("paragraph", "question", "label"),
    "copa": ("premise", "question", "alternative_1", "alternative_2", "label"),
    "hellaswag": ("context", "ending_1", "ending_2", "ending_3", "ending_4", "label"),
    "sentineg": ("sentence", "label"),
    "wic": ("word", "context_1", "context_2", "label"),
}


class FetchBenchmark(Section):
    from_: Literal["files", "hub"] = Field(alias="from")
    inputs: str
    """Folder that holds <task>/<split>.jsonl; for the hub any folder in git."""
    name: str | None
    """Repository of the hub."""
    revision: str | None
    """Commit hash, for the hub."""


class Params(Section):
    fetch_benchmark: FetchBenchmark


def fetch_benchmark(params: Params, inputs: Path, benchmark: Path) -> None:
    settings = params.fetch_benchmark
    hub = settings.from_ == "hub"
    local = snapshot("dataset", "fetch_benchmark", settings.name, settings.revision) if hub else inputs
    with atomic(benchmark) as scratch:
        for task, columns in COLUMNS.items():
            for split in SPLITS:
                if hub:
                    rows = list(load_split("fetch_benchmark", settings.name, local, task, split))
                else:
                    rows = read_items(local / task / f"{split}.jsonl")
                check(rows, columns, f"{task}/{split}", labels=4 if task == "hellaswag" else 2)
                write_jsonl(scratch / task / f"{split}.jsonl", [{c: r[c] for c in columns} for r in rows])
            log.info("%s: %d test items", task, len(rows))


def read_items(path: Path) -> list[dict[str, object]]:
    try:
        return read_jsonl(path)
    except FileNotFoundError:
        raise Stop(f"{path}: missing; fetch_benchmark.inputs needs <task>/{{train,validation,test}}.jsonl") from None
    except ValueError as error:
        raise Stop(f"{path}: not JSON Lines in UTF-8: {error}") from error


def check(rows: list[dict[str, object]], columns: tuple[str, ...], where: str, labels: int) -> None:
    """Raise Stop where an item lacks a column or its label is none of 0..labels-1, or the split has no item."""
    if not rows:
        raise Stop(f"benchmark {where}: no items")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise Stop(f"benchmark {where}, item {number}: wanted an object with {', '.join(columns)}, got {row!r}")
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise Stop(
                f"benchmark {where}, item {number}: lacks {', '.join(missing)}; "
                f"wanted {', '.join(columns)}, got {', '.join(row)}"
            )
        if row["label"] not in range(labels):
            raise Stop(f"benchmark {where}, item {number}: label: wanted 0 to {labels - 1}, got {row['label']!r}")


if __name__ == "__main__":
    run(fetch_benchmark, Params, offline=False)
