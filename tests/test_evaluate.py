"""The benchmark, item by item: the figures are the harness's own."""

import logging
import shutil

import pytest

from stages.evaluate import Params, evaluate, write_tasks
from stages.lib.artifacts import read_jsonl, read_table
from stages.lib.metrics import by_task, floor

TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")
CHOICES = {"boolq": 2, "copa": 2, "hellaswag": 4, "sentineg": 2, "wic": 2}
SHOTS = (0, 2)


@pytest.fixture(scope="module")
def run(new_folder, lm):
    def stage(benchmark, shots=SHOTS):
        params = {"threads": 1, "evaluate": {"shots": list(shots), "batch": 8, "dtype": "fp32"}}
        folder = new_folder() / "base"
        evaluate(Params.model_validate(params), "base", lm, benchmark, folder)
        return folder

    return stage


@pytest.fixture(scope="module")
def evaluated(run, benchmark):
    return run(benchmark)


@pytest.fixture(scope="module")
def items(evaluated):
    return read_table(evaluated / "items.parquet")


@pytest.fixture(scope="module")
def harness(benchmark, lm, new_folder):
    """What the harness itself says of the same task files, by shots and task."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    scratch = new_folder()
    names = write_tasks(benchmark, scratch)
    model = HFLM(pretrained=str(lm), device="cpu", dtype="float32", batch_size=1)
    tasks = TaskManager(include_path=str(scratch), include_defaults=False)
    return {
        f"{shots}-shot": lm_eval.simple_evaluate(
            model=model, tasks=names, num_fewshot=shots, task_manager=tasks, bootstrap_iters=0, log_samples=False
        )["results"]
        for shots in SHOTS
    }


def test_every_item_of_every_task_has_a_row_for_every_number_of_shots(items, benchmark):
    for shots in SHOTS:
        for task in TASKS:
            rows = items[(items["shots"] == shots) & (items["task"] == task)]
            test = read_jsonl(benchmark / task / "test.jsonl")
            assert sorted(rows["item"]) == list(range(len(test)))
            assert rows.sort_values("item")["gold"].tolist() == [item["label"] for item in test]
    assert len(items) == len(SHOTS) * len(TASKS) * 6


def test_a_prediction_is_the_likeliest_choice(items):
    for row in items.itertuples():
        assert len(row.log_likelihoods) == CHOICES[row.task]
        assert row.prediction == max(range(CHOICES[row.task]), key=lambda n: row.log_likelihoods[n])
        assert row.correct == (row.prediction == row.gold)
        assert (row.correct_norm is not None) == (row.task == "hellaswag")


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("task", TASKS)
def test_the_figures_are_those_of_the_harness(shots, task, items, harness):
    ours, theirs = by_task(items)[f"{shots}-shot"][task], harness[f"{shots}-shot"][task]
    assert ours["accuracy"] == pytest.approx(theirs["acc,none"])
    assert ours["macro_f1"] == pytest.approx(theirs["f1,none"])
    assert ours.get("acc_norm") == (pytest.approx(theirs["acc_norm,none"]) if task == "hellaswag" else None)
    assert ours["n"] == 6


def test_the_mean_is_a_plain_one_over_tasks(items):
    for tasks in by_task(items).values():
        for name in ("accuracy", "macro_f1"):
            assert tasks["mean"][name] == pytest.approx(sum(tasks[task][name] for task in TASKS) / len(TASKS))


def test_the_floor_is_the_accuracy_of_the_most_frequent_class(items):
    for tasks in by_task(items, floor).values():
        for task in TASKS:
            gold = items.loc[(items["task"] == task) & (items["shots"] == 0), "gold"]
            assert tasks[task]["accuracy"] == gold.value_counts().max() / len(gold)
            assert "acc_norm" not in tasks[task]


def test_shots_change_the_scores(items):
    rows = items[items["task"] == "sentineg"]  # short, so that no prompt is cut
    none, two = (rows[rows["shots"] == shots]["log_likelihoods"].map(list).tolist() for shots in SHOTS)
    assert all(one != other for one, other in zip(none, two, strict=True))


def test_evaluating_twice_gives_the_same_bytes(evaluated, run, benchmark):
    assert (run(benchmark) / "items.parquet").read_bytes() == (evaluated / "items.parquet").read_bytes()
    assert [path.name for path in evaluated.iterdir()] == ["items.parquet"]


def test_the_benchmark_may_stand_in_any_folder(benchmark, run, items, new_folder):
    folder = new_folder() / "내 평가 #2"
    shutil.copytree(benchmark / "copa", folder / "copa")
    found = read_table(run(folder, shots=[0]) / "items.parquet")
    assert found.equals(items[(items["task"] == "copa") & (items["shots"] == 0)].reset_index(drop=True))
