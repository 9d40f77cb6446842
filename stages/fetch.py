"""Copy every instruction source as it is, from files or from pinned data sets of the hub.

    data/inputs/* or the hub -> data/sources/<source>/*

A zip or tar stays packed. `merge` reads what is in the files.
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
from stages.lib.models.hub import save_split
from stages.lib.reading.containers import listed_files, matches, naming, plain_path
from stages.lib.reading.entry import SourceName

log = logging.getLogger("stages")


class Source(Section):
    from_: Literal["file", "hub"] = Field(alias="from")
    """Where the source comes from."""
    name: str
    """A file or folder in `inputs`, a pattern in which * stands for any characters, or a data set on the hub."""
    revision: str | None
    """Commit hash of the hub data set; null for a file."""
    config: str | None
    """Configuration of the hub data set; null if it has only one."""
    split: str | None
    """Split of the hub data set; null for a file."""


class Fetch(Section):
    inputs: str
    """Folder of the files."""
    sources: dict[SourceName, Source]
    """Instruction sources, by name."""


class Params(Section):
    fetch: Fetch


def fetch(params: Params, inputs: Path, sources: Path) -> None:
    with atomic(sources) as scratch:
        for source, settings in params.fetch.sources.items():
            folder = scratch / source
            folder.mkdir(parents=True)
            if settings.from_ == "file":
                copied = copy_files(inputs, source, settings.name, folder)
                log.info("%s: %s, %d files", source, settings.name, copied)
            else:
                path, where = folder / f"{source}.parquet", f"fetch.sources.{source}"
                save_split(where, settings.name, settings.revision, settings.config, settings.split, path)
                log.info("%s: %s", source, settings.name)


def copy_files(inputs: Path, source: str, name: str, folder: Path) -> int:
    """Copy a file, a folder with all it contains, or every file that matches `name`. Return the number of files.

    Names are compared and written in NFC, without spaces around them.
    """
    with naming(str(inputs)):
        there = listed_files(inputs)
    wanted = plain_path(name)
    chosen = {file: file.removeprefix(f"{wanted}/") for file in there if file.startswith(f"{wanted}/")}
    if wanted in there:
        chosen = {wanted: wanted.rpartition("/")[2]}
    chosen = chosen or {file: file for file in there if matches(file, wanted)}
    if not chosen:
        listed = ", ".join(there) or "nothing"
        raise UserError(f"params.yaml: fetch.sources.{source}.name: no file {inputs / name}; {inputs} has {listed}")
    for file, target in chosen.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(there[file], folder / target)
    return len(chosen)


if __name__ == "__main__":
    run(fetch, Params, offline=False)
