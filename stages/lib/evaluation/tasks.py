"""Find a task of lm-evaluation-harness by its name, and the files that it reads."""

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
    """Of the harness's definition."""
    repository: str
    """On the hub."""
    config: str | None
    splits: tuple[str, ...]
    """The splits that it reads, each from <split>.jsonl."""
    asked: str
    """The split whose items are evaluated: usually test, but CLIcK has only train."""
    metrics: tuple[str, ...]


def find_task(name: str) -> Task:
    """Return a multiple-choice task. Raises UserError if the harness has no task of that name, or of another kind."""
    known = f"kobest_{name}" if name in KOBEST else name
    where = f"params.yaml: evaluate.tasks: {name}"
    path, settings = find_definition(known)
    if path is None:
        raise UserError(f"{where}: the harness has no task {known}")
    if "group" in settings:
        raise UserError(f"{where}: a group of tasks; list its tasks instead: {', '.join(map(str, settings['task']))}")
    if settings.get("output_type") != "multiple_choice" or "process_results" in settings:
        raise UserError(f"{where}: only multiple-choice tasks with one correct answer are supported")
    asked = settings.get("test_split") or settings.get("validation_split")
    needed = {"metric_list": settings.get("metric_list"), "test_split or validation_split": asked}
    missing = [key for key, value in needed.items() if not value]
    if missing or asked is None:
        raise UserError(
            f"{where}: {path} has no {', no '.join(missing)}, so its scores or items are unknown; take another task "
            "of the harness, or remove it"
        )
    splits = dict.fromkeys(settings[key] for key in SPLITS if settings.get(key))
    metrics = tuple(metric["metric"] for metric in settings["metric_list"])
    return Task(name, path, settings["dataset_path"], settings.get("dataset_name"), tuple(splits), asked, metrics)


def find_definition(name: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the path of a task's definition, and its settings including inherited ones; None if there is no task."""
    import lm_eval

    all_tasks = Path(lm_eval.__file__).parent / "tasks"
    family = all_tasks / name.partition("_")[0]
    for folder in (family, all_tasks) if family.is_dir() else (all_tasks,):  # indexing all tasks takes many seconds
        if name in (entries := task_index(folder)):
            return entries[name].yaml_path, entries[name].cfg or {}
    return None, {}


@cache
def task_index(folder: Path) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    entries: dict[str, Any] = TaskManager(include_path=str(folder), include_defaults=False).task_index
    return entries
