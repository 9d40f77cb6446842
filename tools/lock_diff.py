"""Compare two revisions of dvc.lock: which stages ran again, and which of them wrote the same bytes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

Lock = dict[str, Any]


class Reran(NamedTuple):
    """Names of stages, in the order of dvc.lock."""

    reran: list[str]
    """Their command, params or inputs differ, or the base does not have them. The run cache may have done the work."""
    same: list[str]
    """Their outputs are the same bytes as at the base."""
    unexplained: list[str]
    """They have other outputs, but the same command, params and inputs."""


def compare_locks(before: Lock, here: Lock) -> Reran:
    was, now = before["stages"], here["stages"]
    reran = [name for name in now if name not in was or asked(now[name]) != asked(was[name])]
    same = [name for name in now if name in was and written(now[name]) == written(was[name])]
    return Reran(reran, same, [name for name in now if name not in reran and name not in same])


def asked(stage: Lock) -> Lock:
    """Return a stage's entry without its outputs."""
    return {name: value for name, value in stage.items() if name != "outs"}


def written(stage: Lock) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in stage.get("outs", [])}


def edges(lock: Lock) -> Iterator[tuple[str, str]]:
    """Yield each pair of stages of which the second reads what the first wrote, without the names of arms."""
    writers = {path: name for name, stage in lock["stages"].items() for path in written(stage)}
    found = {}
    for name, stage in lock["stages"].items():
        for dep in stage.get("deps", []):
            for path in (path for path in writers if path == dep["path"] or path.startswith(f"{dep['path']}/")):
                found[kind_of(writers[path]), kind_of(name)] = None
    yield from found


def kind_of(stage: str) -> str:
    return stage.partition("@")[0]
