"""Evaluate one model on the benchmark, item by item.

    models/<arm> or models/hub/base, data/benchmark -> data/eval/<arm>/items.parquet

lm-evaluation-harness by its Python API, offline, one model load for all tasks and shots. The prompts are the
harness's own (lm_eval/tasks/kobest); only the data set and the offline form of macro-F1 are ours.
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow as pa
from pydantic import Field

from stages.lib.artifacts import atomic, write_table
from stages.lib.models import Dtype, check_folder, start_torch
from stages.lib.params import Count, Positive, Section
from stages.lib.stage import run
from stages.lib.stop import Stop

log = logging.getLogger("stages")
SPLITS = ("train", "validation", "test")
METRICS = """\
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - metric: f1
    aggregation: !function lm_eval.tasks.kobest.utils.macro_f1_score
    average: macro
    higher_is_better: true
"""
ACC_NORM = "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n"
ITEMS = pa.schema(
    [
        ("task", pa.string()),
        ("shots", pa.int64()),
        ("item", pa.int64()),
        ("gold", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),
        ("correct_norm", pa.bool_()),
        ("log_likelihoods", pa.list_(pa.float64())),
    ]
)


class Evaluate(Section):
    shots: Annotated[list[Count], Field(min_length=1)]
    """Examples before each item, from the task's train split."""
    batch: Positive
    """Requests of a batch, fixed: an automatic one would depend on the device."""
    dtype: Dtype


class Params(Section):
    threads: Positive
    evaluate: Evaluate


def evaluate(params: Params, arm: str, model: Path, benchmark: Path, items: Path) -> None:
    check_folder(model)
    device = start_torch(params.threads)
    with tempfile.TemporaryDirectory() as scratch:
        rows = pd.DataFrame(answers(params.evaluate, device, model, benchmark, Path(scratch)))
    with atomic(items) as folder:
        write_table(folder / "items.parquet", rows, ITEMS)
    accuracy = rows.groupby(["shots", "task"])["correct"].mean().unstack()
    log.info("%s: accuracy\n%s", arm, accuracy.round(3).to_string())


def answers(settings: Evaluate, device: str, model: Path, benchmark: Path, scratch: Path) -> Iterator[dict[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval.evaluator").setLevel(logging.ERROR)  # it warns of every num_fewshot
    names = write_tasks(benchmark.resolve(), scratch)
    network = HFLM(
        pretrained=str(model),
        device=device,
        dtype={"fp32": "float32", "bf16": "bfloat16"}[settings.dtype],
        batch_size=settings.batch,
        add_bos_token=False,
    )
    tasks = TaskManager(include_path=str(scratch), include_defaults=False)
    for shots in settings.shots:
        log.info("%s: %d-shot", model, shots)
        found = simple_evaluate(network, tasks=names, num_fewshot=shots, task_manager=tasks, bootstrap_iters=0)
        for name in names:
            yield from (item_row(name, shots, sample) for sample in found["samples"][name])


def write_tasks(benchmark: Path, scratch: Path) -> list[str]:
    """Write one task file of the harness for every folder of the benchmark; return the tasks' names."""
    import lm_eval

    theirs = Path(lm_eval.__file__).parent / "tasks" / "kobest"
    names = []
    for folder in sorted(path for path in benchmark.iterdir() if path.is_dir()):
        upstream = theirs / f"kobest_{folder.name}.yaml"
        if not upstream.is_file():
            raise Stop(f"{folder}: the harness has no task kobest_{folder.name}")
        data = {
            "include": str(upstream),
            "task": folder.name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "cache_dir": str(scratch / "cache"),
                "data_files": {split: str(folder / f"{split}.jsonl") for split in SPLITS},
            },
        }
        lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in data.items()]  # JSON is YAML
        text = "".join(lines) + METRICS + (ACC_NORM if folder.name == "hellaswag" else "")
        (scratch / f"{folder.name}.yaml").write_text(text, encoding="utf-8")
        names.append(folder.name)
    return names


def item_row(task: str, shots: int, sample: dict[str, Any]) -> dict[str, Any]:
    gold, prediction = sample["f1"]
    return {
        "task": task,
        "shots": shots,
        "item": sample["doc_id"],
        "gold": int(gold),
        "prediction": int(prediction),
        "correct": bool(sample["acc"]),
        "correct_norm": bool(sample["acc_norm"]) if "acc_norm" in sample else None,
        "log_likelihoods": [float(response[0]) for response in sample["filtered_resps"]],
    }


if __name__ == "__main__":
    run(evaluate, Params)
