"""Copy every instruction source as it is, from files or from pinned data sets of the hub.

    data/inputs/* or the hub -> data/sources/<source>.{jsonl,json,csv,parquet}

What the columns mean is the concern of `merge`.
"""

import logging
import shutil
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.lib.core.artifacts import atomic
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.models.hub import load_split, snapshot

log = logging.getLogger("stages")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Source(Section):
    from_: Literal["file", "hub"] = Field(alias="from")
    """Where the source comes from."""
    name: str
    """A file in `inputs`, or a data set on the hub."""
    revision: str | None
    """Commit hash of the hub data set; null for a file."""
    config: str | None
    """Configuration of the hub data set; null if it has only one."""
    split: str | None
    """Split of the hub data set; null for a file."""


class Fetch(Section):
    inputs: str
    """Folder of the files."""
    sources: dict[str, Source]
    """Instruction sources, by name."""


class Params(Section):
    fetch: Fetch


def fetch(params: Params, inputs: Path, sources: Path) -> None:
    with atomic(sources) as scratch:
        scratch.mkdir()
        for source, settings in params.fetch.sources.items():
            if settings.from_ == "file":
                copy_file(inputs / settings.name, source, scratch)
            else:
                save_hub_dataset(source, settings, scratch)
            log.info("%s: %s", source, settings.name)


def copy_file(path: Path, source: str, folder: Path) -> None:
    where = f"params.yaml: fetch.sources.{source}.name"
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*"))) or "nothing"
        raise UserError(f"{where}: no file {path}; {path.parent} has {there}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{where}: expected a file that ends in {', '.join(SUFFIXES)}, got {path.name}")
    shutil.copyfile(path, folder / f"{source}{path.suffix.lower()}")


def save_hub_dataset(source: str, settings: Source, folder: Path) -> None:
    """Write one split of a hub data set as Parquet."""
    where = f"fetch.sources.{source}"
    if settings.split is None:
        raise UserError(f"params.yaml: {where}.split: missing; a hub data set needs a split, usually `train`")
    local = snapshot("dataset", where, settings.name, settings.revision)
    load_split(where, settings.name, local, settings.config, settings.split).to_parquet(
        str(folder / f"{source}.parquet")
    )


if __name__ == "__main__":
    run(fetch, Params, offline=False)
