"""Evaluate one model on the benchmark, item by item.

    models/<arm> (or models/hub/base), models/hub/base, data/benchmark
        -> data/eval/<arm>/items.parquet (.checkpoints/evaluate: of killed evaluations)

It calls the Python API of lm-evaluation-harness, offline, and loads the model once for all tasks and shots. The prompts
are the harness's own (lm_eval/tasks); only the path of the data and an offline macro-F1 are ours. The model may be
whole or an adapter on the base, and either may have its weights in 4 bits. Each task is asked by itself, so its answers
do not depend on the other tasks, and are kept as soon as it is finished.
"""

import json
import logging
import math
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pandas as pd
import pyarrow as pa
from pydantic import Field, field_validator

from stages.lib.core.artifacts import atomic, read_arrow, remove, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section
from stages.lib.core.processes import rank, world
from stages.lib.core.runner import run
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.evaluation.tasks import Task, find_task
from stages.lib.models.loading import Dtype, LoadConfig, held_in_4_bits, load_tokenizer
from stages.lib.models.lora import SETTINGS, load_network
from stages.lib.scoring.fingerprint import MACHINE, Fingerprint, compute_fingerprint, hash_folder, short_hash
from stages.lib.text.bos import added_bos
from stages.lib.text.dates import dated

if TYPE_CHECKING:
    from stages.lib.evaluation.lm_eval_model import SharedLM

log = logging.getLogger("stages")
LIB = Path(__file__).parent / "lib"
CODE = [
    Path(__file__),
    LIB / "evaluation/kobest.py",
    LIB / "evaluation/lm_eval_model.py",
    LIB / "evaluation/tasks.py",
    LIB / "models/loading.py",
    LIB / "models/lora.py",
    LIB / "text/bos.py",
    LIB / "text/dates.py",
]
"""What an answer depends on."""
HARNESS_METRICS = """\
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - metric: f1
    aggregation: !function lm_eval.tasks.kobest.utils.macro_f1_score
    average: macro
    higher_is_better: true
"""
MOST_CHOICES = 10
"""Of an item, because metrics/items stores a choice as one digit."""
ACC_NORM = "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n"
ITEMS = pa.schema(
    [
        ("task", pa.string()),
        ("shots", pa.int64()),
        ("split", pa.string()),
        ("item", pa.int64()),
        ("gold", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),
        ("correct_norm", pa.bool_()),
        ("log_likelihoods", pa.list_(pa.float64())),
        ("truncated", pa.bool_()),
    ]
)
"""`correct_norm`: by log-likelihood per character, null if the task has no acc_norm. `truncated`: the prompt and one of
the choices did not fit into the model, which saw only their end."""


class Evaluate(Section):
    tasks: Annotated[list[str], Field(min_length=1)]
    """KoBEST's tasks by their own names, other multiple-choice tasks by the harness's. Data: data/benchmark/<task>."""
    shots: Annotated[list[Count], Field(min_length=1)]
    """Numbers of examples before each item, from the split that the harness takes them from (KoBEST: train)."""
    batch: Positive
    """Requests per batch. It is fixed, because an automatic one would depend on the device."""
    dtype: Dtype
    quantize: Literal["nf4"] | None
    """Weights of the base and all arms in 4 bits, with quantized scales (Dettmers et al. 2023, arXiv 2305.14314).
    Null for a base that was saved in 4 bits, which is used as it is; `dtype` does not apply to it either."""
    chat: bool
    """Whether to put each question into the model's own chat template, with examples as earlier turns; every model,
    also the base, must have one."""

    @field_validator("tasks", "shots")
    @classmethod
    def nothing_counts_twice(cls, values: list[Any]) -> list[Any]:
        names = [f"kobest_{value}" if value in KOBEST else value for value in values]
        twice = sorted({str(value) for value, name in zip(values, names, strict=True) if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} more than once: its items would count twice in every mean")
        return values

    def load_config(self) -> LoadConfig:
        return LoadConfig(dtype=self.dtype, quantize=self.quantize)


class Params(Section):
    threads: Positive
    portable: bool = False
    evaluate: Evaluate


class Question(NamedTuple):
    """One task with one number of shots."""

    task: Task
    shots: int
    lines: list[int]
    """The line of every item in the file of its split."""

    def kept_in(self, folder: Path) -> Path:
        return folder / f"{self.task.name}-{self.shots}.parquet"


def evaluate(
    params: Params, arm: str, model: Path, base: Path, benchmark: Path, checkpoints: Path, evaluation: Path
) -> None:
    settings = params.evaluate
    tasks = [find_task(name) for name in settings.tasks]
    template = chat_template_of(model) if settings.chat else None
    checkpoints = checkpoints / short_hash(evaluation_fingerprint(params, arm, model, base, benchmark))
    from stages.lib.evaluation.lm_eval_model import SharedLM, cached_templates

    for name in ("evaluator", "models.huggingface"):  # they warn about every request that they cut
        logging.getLogger(f"lm_eval.{name}").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch, cached_templates():
        write_tasks(tasks, benchmark.resolve(), Path(scratch))
        lines = check_tasks(tasks, max(settings.shots), Path(scratch))
        questions = [Question(task, shots, lines[task.name]) for shots in settings.shots for task in tasks]
        network, tokenizer = load_network(model, base, settings.load_config(), params.threads), load_tokenizer(model)
        shared = SharedLM(network, tokenizer, settings.batch, added_bos(tokenizer), template)
        definitions = manager(Path(scratch))
        found = all_answers(checkpoints, questions, lambda question: answers(arm, question, shared, definitions))
    if rank() != 0:
        return
    with atomic(evaluation) as folder:
        write_table(folder / "items.parquet", found, ITEMS)
    log_accuracy(arm, found.to_pandas())
    remove(checkpoints)


def chat_template_of(model: Path) -> str:
    tokenizer = load_tokenizer(model)
    if tokenizer.chat_template is None:
        raise UserError(
            f"{model}: evaluate.chat: true needs a chat template, and this tokenizer has none; set chat to false"
        )
    return dated(tokenizer.get_chat_template())


def evaluation_fingerprint(params: Params, arm: str, model: Path, base: Path, benchmark: Path) -> Fingerprint:
    """Return what the kept answers of an evaluation must have in common with this one."""
    in_4_bits = held_in_4_bits(params.evaluate.load_config(), model, base)
    libraries = ["lm_eval", "datasets", "peft", *(["bitsandbytes"] if in_4_bits else [])]
    settings = {"settings": params.evaluate.model_dump_json(), "arm": arm}
    settings |= params.model_dump(include=MACHINE)
    base_files = hash_folder(base) if (model / SETTINGS).is_file() else None  # whole weights need no base
    inputs = {"base": base_files, "benchmark": hash_folder(benchmark)}
    return compute_fingerprint(model, {name: version(name) for name in libraries} | settings | inputs, CODE)


def all_answers(folder: Path, questions: list[Question], ask: Callable[[Question], pa.Table]) -> pa.Table:
    """Return the answers to all questions, in order; ask only those that have no answers in `folder`, and keep them."""
    kept = from_first_process({path: kept_answers(path) for path in (one.kept_in(folder) for one in questions)})
    parts = []
    for question in questions:
        path = question.kept_in(folder)
        part = kept[path]
        if part is None:
            part = ask(question)
            if rank() == 0:
                write_table(path, part, ITEMS)
        else:
            log.info("%s: the answers of an earlier run", path)
        parts.append(part)
    return pa.concat_tables(parts)


def kept_answers(path: Path) -> pa.Table | None:
    if rank() > 0 or not path.is_file():
        return None
    try:
        return read_arrow(path)
    except UserError as error:
        log.warning("damaged, so it is asked again: %s", error)
        return None


def from_first_process(kept: dict[Path, pa.Table | None]) -> dict[Path, pa.Table | None]:
    """Return what the first process has, so that all ask the same questions."""
    if world() == 1:
        return kept
    import torch.distributed as dist

    box = [kept]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def write_tasks(tasks: list[Task], benchmark: Path, scratch: Path) -> None:
    """Write task files for the harness that include its own and replace the data by our local copies."""
    for task in tasks:
        files = {split: benchmark / task.name / f"{split}.jsonl" for split in task.splits}
        for path in files.values():
            if not path.is_file():
                raise UserError(f"{path}: missing; {task.name} of the harness reads {', '.join(task.splits)}")
        data = {
            "include": str(task.path),
            "task": task.name,
            "num_fewshot": None,  # if a task sets it, the harness ignores ours
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "cache_dir": str(scratch / "cache"),
                "data_files": {split: str(path) for split, path in files.items()},
            },
        }
        lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in data.items()]  # JSON is YAML
        text = "".join(lines) + HARNESS_METRICS + (ACC_NORM if "acc_norm" in task.metrics else "")
        (scratch / f"{task.name}.yaml").write_text(text, encoding="utf-8")


def check_tasks(tasks: list[Task], shots: int, scratch: Path) -> dict[str, list[int]]:
    """Return the line of every evaluated item in the file of its split, by task.

    Raises UserError for wrong columns, examples or answers, which the harness would find hours later or ignore.
    """
    from jinja2 import UndefinedError

    loader, lines = manager(scratch), {}
    for task in tasks:
        try:
            asked = loader.load([task.name])["tasks"][task.name]
            check_items(task.name, asked, shots)
            lines[task.name] = lines_of(asked.eval_docs, asked.dataset[task.asked])
        except (IndexError, KeyError, ValueError, UndefinedError) as error:
            raise UserError(f"benchmark {task.name}: lacks columns that the harness reads: {error}") from error
    return lines


def lines_of(items: Any, rows: Any) -> list[int]:
    """Return the row number of each item; some tasks (CLIcK) ask only some of a file's rows, in the file's order."""
    if len(items) == len(rows):
        return list(range(len(rows)))
    places: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        places.setdefault(json.dumps(row, sort_keys=True), []).append(number)
    return [places[json.dumps({name: item[name] for name in rows.features}, sort_keys=True)].pop(0) for item in items]


def check_items(name: str, task: Any, shots: int) -> None:
    """Raise UserError if a task has too few examples, or an item has no correct answer."""
    available = len(task.fewshot_docs()) - (task.fewshot_cfg.split == task.config.test_split) if shots else 0
    if shots > available:
        raise UserError(f"params.yaml: evaluate.shots: {shots}, but {name} has only {available} examples")
    for number, item in enumerate(task.eval_docs):
        gold, choices = task.doc_to_target(item), task.doc_to_choice(item)
        if gold not in (choices if isinstance(gold, str) else range(len(choices))):
            raise UserError(f"benchmark {name}, item {number}: the answer is {gold!r}, not one of {', '.join(choices)}")
        if len(choices) > MOST_CHOICES:
            raise UserError(f"benchmark {name}, item {number}: {len(choices)} choices, but at most {MOST_CHOICES} fit")


def manager(scratch: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(scratch), include_defaults=False)


def answers(arm: str, question: Question, shared: "SharedLM", definitions: Any) -> pa.Table:
    """Return the rows of `ITEMS` of one question. Raises UserError if a log-likelihood is not finite."""
    from stages.lib.evaluation.lm_eval_model import ask

    task, shots, lines = question
    log.info("%s: %s, %d-shot", arm, task.name, shots)
    rows = []
    for sample in ask(shared, definitions, task.name, shots):
        rows.append(item_row(question, lines[sample["doc_id"]], sample, shared.truncated))
        check_finite(f"{arm}: {task.name}, {shots}-shot, item {rows[-1]['item']}", rows[-1]["log_likelihoods"])
    return pa.Table.from_pylist(rows, ITEMS)


def check_finite(where: str, values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{where}: the log-likelihoods are {', '.join(f'{value:.4g}' for value in values)}: the model computes "
            "numbers that are not finite; try evaluate.dtype: fp32, or train again with a lower train.learning_rate"
        )


def item_row(question: Question, line: int, sample: dict[str, Any], truncated: set[tuple[str, str]]) -> dict[str, Any]:
    gold, prediction = sample["f1"]
    return {
        "task": question.task.name,
        "shots": question.shots,
        "split": question.task.asked,
        "item": line,
        "gold": int(gold),
        "prediction": int(prediction),
        "correct": bool(sample["acc"]),
        "correct_norm": bool(sample["acc_norm"]) if "acc_norm" in sample else None,
        "log_likelihoods": [float(response[0]) for response in sample["filtered_resps"]],
        "truncated": any(tuple(texts) in truncated for texts in sample["arguments"]),
    }


def log_accuracy(arm: str, rows: pd.DataFrame) -> None:
    groups = rows.groupby(["shots", "task"])
    log.info("%s: accuracy\n%s", arm, groups["correct"].mean().unstack().round(3).to_string())
    for (shots, task), count in groups["truncated"].sum().items():
        if count:
            log.warning(
                "%s: %s, %d-shot: %d items did not fit into the model, which saw only their end",
                arm,
                task,
                shots,
                count,
            )


if __name__ == "__main__":
    run(evaluate, Params, several=True)
