"""The benchmark, item by item: the scores are the harness's own."""

import json
import logging
import shutil
import subprocess
import sys

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from stages.evaluate import Params, evaluate
from stages.lib.core.artifacts import read_jsonl, read_table, write_jsonl
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.evaluation.metrics import majority_baseline, scores_by_task
from stages.lib.models.lora import load_network
from tests.harness import ask_the_harness
from tests.project import ENVIRONMENT, ROOT

TASKS = list(KOBEST)
CHOICES = {"boolq": 2, "copa": 2, "hellaswag": 4, "sentineg": 2, "wic": 2}
SHOTS = (0, 2)
POSITIONS = 256
"""Of the tiny model."""


def settings(**changes):
    default = {"tasks": TASKS, "shots": list(SHOTS), "batch": 8, "dtype": "fp32", "quantize": None, "chat": False}
    return {"threads": 1, "evaluate": default | changes}


@pytest.fixture(scope="module")
def run(new_folder, lm):
    def stage(benchmark, model=lm, base=lm, **changes):
        params, folder = Params.model_validate(settings(**changes)), new_folder()
        places = {"checkpoints": folder / "checkpoints", "evaluation": folder / "base"}
        evaluate(params, arm="base", model=model, base=base, benchmark=benchmark, **places)
        return folder / "base"

    return stage


@pytest.fixture(scope="module")
def evaluated(run, benchmark):
    return run(benchmark)


@pytest.fixture(scope="module")
def items(evaluated):
    return read_table(evaluated / "items.parquet")


@pytest.fixture(scope="module")
def harness(new_folder, lm, benchmark):
    return ask_the_harness(new_folder(), lm, benchmark, TASKS, list(SHOTS), batch=8)


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
def test_scores_are_those_of_the_harness(shots, task, items, harness):
    ours, theirs = scores_by_task(items)[f"{shots}-shot"][task], harness[f"{shots}-shot"]["results"][task]
    assert ours["accuracy"] == pytest.approx(theirs["acc,none"])
    assert ours["macro_f1"] == pytest.approx(theirs["f1,none"])
    assert ours.get("acc_norm") == (pytest.approx(theirs["acc_norm,none"]) if task == "hellaswag" else None)
    assert ours["n"] == 6


def test_likelihoods_have_the_bits_that_the_harness_gives_them(items, harness):
    for (shots, task), rows in items.groupby(["shots", "task"]):
        samples = sorted(harness[f"{shots}-shot"]["samples"][task], key=lambda sample: sample["doc_id"])
        theirs = [[response[0] for response in sample["filtered_resps"]] for sample in samples]
        assert [list(row) for row in rows.sort_values("item")["log_likelihoods"]] == theirs


def test_an_item_is_truncated_if_prompt_and_choice_are_longer_than_the_model(items, harness, tokenizer):
    for row in items.itertuples():
        sample = next(s for s in harness[f"{row.shots}-shot"]["samples"][row.task] if s["doc_id"] == row.item)
        lengths = [len(tokenizer(prompt + choice)["input_ids"]) for prompt, choice in sample["arguments"]]
        assert row.truncated == (max(lengths) > POSITIONS + 1)
    assert 0 < items["truncated"].sum() < len(items)


def test_truncated_items_are_counted_beside_the_scores_and_in_the_log(items, run, benchmark, caplog):
    with caplog.at_level(logging.INFO):
        rows = read_table(run(benchmark, tasks=["boolq"]) / "items.parquet")
    count = int((rows["truncated"] & (rows["shots"] == 2)).sum())
    assert scores_by_task(items)["2-shot"]["boolq"]["truncated"] == count
    assert caplog.text.count("only their end") == rows.loc[rows["truncated"], "shots"].nunique()
    assert f"base: boolq, 2-shot: {count} items did not fit into the model" in caplog.text
    assert "Truncating" not in caplog.text


def test_the_mean_over_tasks_is_unweighted(items):
    for tasks in scores_by_task(items).values():
        for name in ("accuracy", "macro_f1"):
            assert tasks["mean"][name] == pytest.approx(sum(tasks[task][name] for task in TASKS) / len(TASKS))


def test_the_majority_baseline_is_the_share_of_the_most_frequent_class(items):
    for tasks in scores_by_task(items, majority_baseline).values():
        for task in TASKS:
            gold = items.loc[(items["task"] == task) & (items["shots"] == 0), "gold"]
            assert tasks[task]["accuracy"] == gold.value_counts().max() / len(gold)
            assert "acc_norm" not in tasks[task]


def test_shots_change_the_scores(items):
    rows = items[items["task"] == "sentineg"]  # short, so that no prompt is cut
    none, two = (rows[rows["shots"] == shots]["log_likelihoods"].map(list).tolist() for shots in SHOTS)
    assert all(one != other for one, other in zip(none, two, strict=True))


def test_up_to_fifty_shots_work(run, new_folder):
    folder = new_folder()
    lines = (ROOT / "data/benchmark_inputs/sentineg/train.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "sentineg").mkdir()
    for split, count in (("train", 50), ("validation", 3), ("test", 3)):
        (folder / "sentineg" / f"{split}.jsonl").write_bytes(b"".join((lines * 5)[:count]))
    rows = read_table(run(folder, tasks=["sentineg"], shots=[0, 1, 2, 5, 10, 50]) / "items.parquet")
    assert rows.groupby("shots")["truncated"].sum().to_dict() == {0: 0, 1: 0, 2: 0, 5: 3, 10: 3, 50: 3}
    assert len({tuple(row) for row in rows.loc[rows["item"] == 0, "log_likelihoods"]}) == 6


def test_evaluating_twice_gives_the_same_bytes(evaluated, run, benchmark):
    assert (run(benchmark) / "items.parquet").read_bytes() == (evaluated / "items.parquet").read_bytes()
    assert [path.name for path in evaluated.iterdir()] == ["items.parquet"]


def test_the_benchmark_may_stand_in_any_folder(benchmark, run, items, new_folder):
    folder = new_folder() / "내 평가 #2"
    shutil.copytree(benchmark / "copa", folder / "copa")
    found = read_table(run(folder, tasks=["copa"], shots=[0]) / "items.parquet")
    assert found.equals(items[(items["task"] == "copa") & (items["shots"] == 0)].reset_index(drop=True))


@pytest.mark.slow
def test_several_processes_write_the_same_bytes_as_one(evaluated, benchmark, lm, tmp_path):
    YAML().dump(settings(), tmp_path / "params.yaml")
    flags = {"arm": "base", "model": lm, "base": lm, "benchmark": benchmark}
    flags |= {"checkpoints": "checkpoints", "evaluation": "out"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "stages.evaluate", *words]
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PET_NPROC_PER_NODE": "3"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "items.parquet").read_bytes() == (evaluated / "items.parquet").read_bytes()
    assert done.stderr.count("base: accuracy") == 1


@pytest.fixture(scope="module")
def wide(build, save, tokenizer):
    """Folder of a GPT-NeoX as wide as a block of bitsandbytes, which it needs on some CPUs."""
    return save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", hidden_size=64), tokenizer)


@pytest.fixture(scope="module")
def adapter(wide, new_folder):
    """Two folders of one LoRA: the adapter, whose config names no existing base, and the base with it merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["query_key_value", "dense"], init_lora_weights=False)
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(wide), config)
    folder, merged = new_folder(), new_folder()
    network.save_pretrained(folder)
    network.merge_and_unload().save_pretrained(merged)
    for out in (folder, merged):
        AutoTokenizer.from_pretrained(wide).save_pretrained(out)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(written | {"base_model_name_or_path": "nowhere"}))
    return folder, merged


@pytest.fixture(scope="module")
def likelihoods(run, benchmark, wide):
    """Evaluate a model on COPA; return every log-likelihood."""

    def of(model, quantize=None):
        rows = read_table(run(benchmark, model, wide, tasks=["copa"], quantize=quantize) / "items.parquet")
        return [value for row in rows["log_likelihoods"] for value in row]

    return of


def largest_difference(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_an_adapter_is_evaluated_on_its_base_as_if_it_were_merged(adapter, likelihoods, wide):
    unmerged, merged, untuned = (likelihoods(model) for model in (*adapter, wide))
    assert largest_difference(unmerged, merged) < 1e-3 < 1 < largest_difference(unmerged, untuned)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_weights_in_4_bits_are_evaluated_on_a_cpu(kind, adapter, likelihoods, wide):
    pytest.importorskip("bitsandbytes")
    model = wide if kind == "whole" else adapter[0]
    config = Params.model_validate(settings(quantize="nf4")).evaluate.load_config()
    network = load_network(model, wide, config, threads=1)
    assert network.is_loaded_in_4bit
    exact, rounded = likelihoods(model), likelihoods(model, "nf4")
    assert 0.01 < largest_difference(exact, rounded) < 0.2 * max(map(abs, exact))


@pytest.mark.parametrize(
    "twice", [{"shots": [0, 1, 0]}, {"tasks": ["copa", "wic", "copa"]}, {"tasks": ["copa", "kobest_copa"]}]
)
def test_no_item_counts_twice(twice):
    with pytest.raises(ValidationError, match="more than once: its items would count twice"):
        Params.model_validate(settings(**twice))


OTHERS = {
    "haerae_history/test": [
        {
            "query": f"### 질문: {n}번 왕은?\n(A) 태조 (B) 정종 (C) 태종 (D) 세종 (E) 문종\n### 정답:",
            "answer": f"({answer})",
        }
        for n, answer in enumerate("ACEBD")
    ],
    "kmmlu_accounting/test": [
        {"question": f" {n}번 계정은? ", "A": "자산", "B": "부채", "C": "자본", "D": "수익", "answer": 1 + n % 4}
        for n in range(6)
    ],
    "kmmlu_accounting/dev": [
        {"question": f"{n}번 예제는?", "A": "자산", "B": "부채", "C": "자본", "D": "수익", "answer": 1 + n % 4}
        for n in range(5)
    ],
    "click_cul_economy/train": [
        {
            "id": f"{name}_{n}",
            "paragraph": "",
            "question": "수출품은?",
            "choices": list("쌀콩차꿀귤"[:size]),
            "answer": "콩",
        }
        for n, (name, size) in enumerate(
            [("KIIP_economy", 4), ("CSAT_economy", 5), ("KIIP_law", 4), ("PSE_economy", 4)]
        )
    ],
}


def test_haerae_kmmlu_and_click_are_evaluated_in_their_columns(run, lm, new_folder):
    folder = new_folder()
    for name, rows in OTHERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_jsonl(folder / f"{name}.jsonl", rows)
    names = ["haerae_history", "kmmlu_accounting", "click_cul_economy"]
    rows = read_table(run(folder, tasks=names, shots=[0, 1]) / "items.parquet")
    assert dict(zip(rows["task"], rows["split"], strict=True)) == dict(
        zip(names, ["test", "test", "train"], strict=True)
    )
    golds = {task: group["gold"].tolist() for task, group in rows[rows["shots"] == 1].groupby("task")}
    assert golds == {
        "haerae_history": [0, 2, 4, 1, 3],
        "kmmlu_accounting": [0, 1, 2, 3, 0, 1],
        "click_cul_economy": [1, 1, 1],
    }
    assert rows.loc[rows["task"] == "click_cul_economy", "item"].tolist() == [0, 1, 3] * 2  # KIIP_law is not asked
    assert [len(row) for row in rows.loc[rows["task"] == "click_cul_economy", "log_likelihoods"]] == [4, 5, 4] * 2
    for shots, theirs in ask_the_harness(new_folder(), lm, folder, names, [0, 1], batch=1).items():
        for name in names:
            ours = scores_by_task(rows)[shots][name]
            assert ours["accuracy"] == pytest.approx(theirs["results"][name]["acc,none"])
            assert ours.get("acc_norm") == pytest.approx(theirs["results"][name].get("acc_norm,none"))
