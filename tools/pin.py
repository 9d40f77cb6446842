"""Pin what a params file takes from the hub: `python -m tools.pin recipes/koquality.yaml`.

Asks the hub for the newest commit of every repository whose revision is null, writes it in the place of the null and
prints the change. Comments, layout and revisions that are already there stay. HF_ENDPOINT names another hub, HF_TOKEN
opens private repositories. If the hub does not answer for a repository, the command names it with the reason, writes
nothing at all and exits with 1: half of a recipe at one date and half at another would be no state that anyone chose.
"""

import difflib
import re
import sys
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from stages.fetch import Fetch
from stages.fetch_benchmark import FetchBenchmark
from stages.fetch_model import Model
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section, read_params
from tools.output import print_lines

NULL = re.compile("null|Null|NULL|~|")
"""How YAML writes a null; an empty value is one too."""


class FromHub(Section):
    fetch: Fetch
    fetch_benchmark: FetchBenchmark
    fetch_model: dict[str, Model]


class Unpinned(NamedTuple):
    keys: tuple[str, ...]
    """Of the null in the file."""
    kind: str
    """`model` or `dataset`."""
    name: str


def pin(path: Path) -> Iterator[str]:
    """Yield the lines of the diff, after the file is written."""
    wanted = list(unpinned(read_params(FromHub, path)))
    commits = newest_commits({(entry.kind, entry.name) for entry in wanted})
    before = path.read_bytes().decode("utf-8")
    after = replace_nulls(before, {entry.keys: commits[entry.kind, entry.name] for entry in wanted}, path)
    path.write_bytes(after.encode("utf-8"))
    names = (str(path), str(path))
    yield from difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="")
    yield f"{path}: {len(wanted)} pinned" if wanted else f"{path}: nothing from the hub has `revision: null`"


def unpinned(params: FromHub) -> Iterator[Unpinned]:
    """Yield what comes from the hub without a revision."""
    for source, data_set in params.fetch.sources.items():
        if data_set.from_ == "hub" and data_set.revision is None:
            yield Unpinned(("fetch", "sources", source, "revision"), "dataset", data_set.name)
    if params.fetch_benchmark.from_ == "hub":
        for name, revision in params.fetch_benchmark.revisions.items():
            if revision is None:
                yield Unpinned(("fetch_benchmark", "revisions", name), "dataset", name)
    for role, model in params.fetch_model.items():
        if model.from_ == "hub" and model.revision is None and model.name:
            yield Unpinned(("fetch_model", role, "revision"), "model", model.name)


def newest_commits(repositories: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the newest commit of every (kind, name). Raises one UserError that lists all without an answer."""
    from huggingface_hub import HfApi

    found, failed = {}, []
    for kind, name in sorted(repositories):
        try:
            found[kind, name] = str(HfApi().repo_info(name, repo_type=kind, timeout=30).sha)
        except Exception as error:  # the client's own, and those of the library that it speaks HTTP with
            failed.append(f"\n  {kind} {name}: {reason(error)}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(repositories)} repositories gave no commit, nothing is written:{''.join(failed)}"
        )
    return found


def reason(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "gated; ask for access on its page, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "not found, or private; check the name, and set HF_TOKEN if it is private"
    if isinstance(error, HFValidationError):
        return f"not a repository's name: {error}"
    return f"no answer ({type(error).__name__}: {' '.join(str(error).split())}); check the network and HF_ENDPOINT"


def replace_nulls(text: str, values: dict[tuple[str, ...], str], path: Path) -> str:
    """Return the YAML text with the nulls under these keys replaced, and nothing else changed.

    ruamel.yaml only finds the places: what it writes keeps comments, but not every space and line break.
    """
    content, places = YAML().load(text), {}
    for keys, value in values.items():
        section = reduce(getitem, keys[:-1], content)
        places[tuple(section.lc.value(keys[-1]))] = value
        section[keys[-1]] = value
    lines = text.splitlines(keepends=True)
    for row, column in sorted(places, reverse=True):
        before, rest = lines[row][:column], NULL.sub("", lines[row][column:], count=1)
        lines[row] = f"{before}{' ' * before.endswith(':')}{places[row, column]}{rest}"
    changed = "".join(lines)
    if YAML(typ="safe").load(changed) != content:
        raise UserError(f"{path}: the nulls are not where they seem; write each as `revision: null` on its own line")
    return changed


def main(words: list[str]) -> int:
    if len(words) != 1:
        print("usage: python -m tools.pin recipes/NAME.yaml", file=sys.stderr)
        return 2
    return print_lines(pin(Path(words[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
