"""Tasks of lm-evaluation-harness, found by name, and the files that each of them reads."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stages.lib.core.errors import UserError
from stages.lib.evaluation.kobest import KOBEST

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Task:
    """A multiple-choice task as the harness defines it."""

    name: str
    path: Path
    """The harness's definition."""
    repository: str
    """Of the hub."""
    config: str | None
    splits: tuple[str, ...]
    """What it reads: <split>.jsonl each."""
    asked: str
    """The split whose items are asked: test, but CLIcK has only train."""
    metrics: tuple[str, ...]


def find_task(name: str) -> Task:
    """Return the harness's definition; raise UserError where it has none that asks for one of several choices."""
    known = f"kobest_{name}" if name in KOBEST else name
    where = f"params.yaml: evaluate.tasks: {name}"
    path, settings = definition(known)
    if path is None:
        raise UserError(f"{where}: the harness has no task {known}")
    if "group" in settings:
        raise UserError(f"{where}: a group of the harness; name its tasks: {', '.join(map(str, settings['task']))}")
    if settings.get("output_type") != "multiple_choice" or "process_results" in settings:
        raise UserError(f"{where}: only multiple-choice tasks with one right answer can be evaluated here")
    splits = dict.fromkeys(settings[key] for key in SPLITS if settings.get(key))
    metrics = tuple(metric["metric"] for metric in settings["metric_list"])
    asked = settings.get("test_split") or settings["validation_split"]
    return Task(name, path, settings["dataset_path"], settings.get("dataset_name"), tuple(splits), asked, metrics)


def definition(name: str) -> tuple[Path | None, dict[str, Any]]:
    """Return where the harness defines a task, and its settings with those that it includes."""
    import lm_eval

    everything = Path(lm_eval.__file__).parent / "tasks"
    family = everything / name.partition("_")[0]
    for folder in (family, everything) if family.is_dir() else (everything,):  # everything takes many seconds
        if name in (entries := index(folder)):
            return entries[name].yaml_path, entries[name].cfg or {}
    return None, {}


@cache
def index(folder: Path) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    entries: dict[str, Any] = TaskManager(include_path=str(folder), include_defaults=False).task_index
    return entries
