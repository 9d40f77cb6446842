"""Plain calls of lm-evaluation-harness, with its own task files, of which only `dataset_path` is changed."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ruamel.yaml import YAML

from stages.lib.evaluation.tasks import find_task


def ask_the_harness(
    scratch: Path, model: Path, benchmark: Path, names: list[str], shots: list[int], batch: int, chat: bool = False
) -> dict[str, Any]:
    """Return what `simple_evaluate` answers to each task by itself: {"<shots>-shot": {"results": ..., "samples": ...}}.

    `chat`: with its flags --apply_chat_template and --fewshot_as_multiturn.
    Without what it writes about the machine, for which it calls pip each time.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    (scratch / "tasks").mkdir()
    for name in names:
        copy = scratch / f"{scratch.name}-{name}"  # datasets caches by the folder's name
        lay_out(benchmark, name, copy)
        task = {"include": str(find_task(name).path), "task": name, "dataset_path": str(copy)}
        YAML().dump(task, scratch / "tasks" / f"{name}.yaml")
    network = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch)
    manager = TaskManager(include_path=str(scratch / "tasks"), include_defaults=False)

    def of_each_task(count: int) -> dict[str, Any]:
        options = {"num_fewshot": count, "task_manager": manager, "bootstrap_iters": 0}
        options |= {"apply_chat_template": chat, "fewshot_as_multiturn": chat}
        asked = {name: lm_eval.simple_evaluate(model=network, tasks=[name], **options) for name in names}
        return {part: {name: one[part][name] for name, one in asked.items()} for part in ("results", "samples")}

    with patch("lm_eval.evaluator.add_env_info"):
        return {f"{count}-shot": of_each_task(count) for count in shots}


def lay_out(benchmark: Path, name: str, out: Path) -> None:
    """Copy a task's files in the layout of a hub repository, where a README names configuration and splits."""
    task = find_task(name)
    shutil.copytree(benchmark / name, out)
    files = [{"split": split, "path": f"{split}.jsonl"} for split in task.splits]
    configs = [{"config_name": task.config or "default", "data_files": files}]
    (out / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
