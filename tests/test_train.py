"""Fine-tuning: on answers only, with the same budget for every arm and the same bits every time."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import get_scheduler

from stages import train as stage
from stages.lib.core.artifacts import read_json, read_table
from stages.lib.core.errors import UserError
from stages.lib.training import trainer
from stages.lib.training.budget import Budget, presented
from stages.lib.training.collate import IGNORED, labels
from tests.chats import encode_pairs, prompt_of
from tests.training import HELD_OUT, prepare, settings, train_here, weights, with_ids


@pytest.fixture(scope="module")
def run(new_folder, base):
    """Train on rows; return the folder with model/, training.json and training.parquet."""

    def stage(rows, held_out=HELD_OUT, **changes):
        return train_here(prepare(new_folder(), base, rows, held_out), **changes)

    return stage


@pytest.fixture(scope="module")
def trained(run, rows):
    return run(rows[:16], held_out=rows[30:])


def test_training_twice_gives_the_same_bytes(trained, run, rows):
    again = run(rows[:16], held_out=rows[30:])
    names = sorted(path.relative_to(trained) for path in trained.rglob("*") if path.is_file())
    assert [str(name) for name in names if name.suffix == ".safetensors"] == ["model/model.safetensors"]
    for name in names:
        assert (again / name).read_bytes() == (trained / name).read_bytes(), name


def test_labels_are_the_answer_and_the_end_of_text(tokenizer, rows):
    examples = encode_pairs(tokenizer, "koalpaca", rows, 128)
    for row, example in zip(rows, examples, strict=True):
        learned = [label for label in labels(example) if label != IGNORED]
        assert tokenizer.decode(learned[:-1]) == f" {row['output']}"
        assert learned[-1] == tokenizer.eos_token_id
        assert labels(example)[-len(learned) :] == example.ids[-len(learned) :] == learned
        assert len(labels(example)) == len(example.ids)


def test_the_prompt_of_use_is_the_prefix_of_the_example(tokenizer, rows):
    examples = encode_pairs(tokenizer, "koalpaca", rows, 128)
    for row, example in zip(rows, examples, strict=True):
        prompt = tokenizer(prompt_of("koalpaca", row["instruction"], ""))["input_ids"]
        assert example.ids[: example.answers[0][0]] == prompt
        assert row["instruction"] in tokenizer.decode(prompt)


def test_an_example_is_cut_and_a_long_prompt_leaves_no_answer(tokenizer, rows):
    prompt = len(tokenizer(prompt_of("koalpaca", rows[4]["instruction"], ""))["input_ids"])
    (whole,) = encode_pairs(tokenizer, "koalpaca", rows[4:5], 500)
    for limit in (prompt - 1, prompt, prompt + 1, len(whole.ids) - 1, len(whole.ids)):
        (example,) = encode_pairs(tokenizer, "koalpaca", rows[4:5], limit)
        assert example.ids == whole.ids[:limit]
        assert example.answers == ([(prompt, limit)] if prompt < limit else [])


def test_a_row_whose_prompt_fills_the_limit_is_dropped_and_counted(run, rows, tokenizer):
    lengths = [len(tokenizer(prompt_of("koalpaca", row["instruction"], ""))["input_ids"]) for row in rows]
    limit = sorted(lengths)[len(lengths) // 2]
    found = read_json(run(rows, max_tokens=limit, budget={"unit": "steps", "amount": 1}) / "training.json")
    assert (found["rows"], found["rows_without_answer"]) == (40, sum(length >= limit for length in lengths))
    assert 0 < found["rows_without_answer"] < 40


def test_rows_that_lose_the_end_of_their_answer_are_counted(run, rows, tokenizer):
    whole = encode_pairs(tokenizer, "koalpaca", rows, 10_000)
    lengths = [len(example.ids) for example in whole]
    limit = sorted(lengths)[30]
    folder = run(rows, held_out=rows[:20], max_tokens=limit, budget={"unit": "steps", "amount": 1})
    found = read_json(folder / "training.json")
    assert found["rows_cut"] == sum(length > limit for length in lengths) > 0
    assert found["held_out_cut"] == sum(length > limit for length in lengths[:20]) > 0


def test_the_last_steps_of_a_training_have_a_loss_too(run, rows):
    found = read_json(run(rows, budget={"unit": "steps", "amount": 7}) / "training.json")
    assert [entry["step"] for entry in found["loss"]] == [1, 7]


def test_two_gpus_for_one_process_are_refused_before_any_work(run, rows, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="2 GPUs are visible to one process; set PET_NPROC_PER_NODE=2"):
        run(rows)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", "REPORT_TO is wandb, which is not installed; `pip install wandb`"),
        ("wand", "REPORT_TO is wand; expected none, tensorboard, wandb, mlflow"),
    ],
)
def test_a_tracker_that_is_missing_is_refused_before_any_work(name, message, run, rows, monkeypatch):
    monkeypatch.setattr(trainer, "find_spec", lambda _: None)
    monkeypatch.setenv("REPORT_TO", name)
    with pytest.raises(UserError, match=message):
        run(rows)


def test_no_row_with_an_answer_stops_the_stage(run, rows):
    with pytest.raises(
        UserError, match=r"samples\.jsonl: train\.max_tokens \(8\) leaves no answer token in any of 40 rows"
    ):
        run(rows, max_tokens=8)


def test_a_budget_of_steps_is_the_same_for_a_small_and_a_large_arm(run, rows, trained):
    small, large = read_json(run(rows[:3]) / "training.json"), read_json(run(rows) / "training.json")
    assert (small["rows"], large["rows"]) == (3, 40)
    assert small["steps"] == large["steps"] == read_json(trained / "training.json")["steps"] == 12
    assert small["epochs"] > large["epochs"]


def test_a_budget_of_epochs_gives_a_larger_arm_more_steps(run, rows, tokenizer):
    budget = {"unit": "epochs", "amount": 2}
    small, large = (read_json(run(rows[:n], budget=budget) / "training.json") for n in (4, 12))
    assert (small["steps"], large["steps"]) == (2, 6)
    assert small["epochs"] == large["epochs"] == 2
    examples = encode_pairs(tokenizer, "koalpaca", rows[:4], 128)
    assert small["tokens"] == 2 * sum(len(example.ids) for example in examples)


@pytest.mark.parametrize(("unit", "amount"), [("rows", 30), ("tokens", 900)])
def test_a_budget_of_rows_or_tokens_is_the_same_for_a_small_and_a_large_arm(unit, amount, run, rows):
    small, large = (
        read_json(run(rows[:n], budget={"unit": unit, "amount": amount}) / "training.json") for n in (3, 40)
    )
    assert small["epochs"] > 1 > large["epochs"]
    if unit == "rows":
        assert (small["steps"], large["steps"]) == (10, 8)  # an epoch of three rows is a step of three
    else:
        assert all(900 <= found["tokens"] < 1028 for found in (small, large))


def test_the_loss_on_everything_is_that_of_whole_texts(run, rows, base, tokenizer):
    found = read_json(run(rows[:4], budget={"unit": "steps", "amount": 1}, loss_on="all") / "training.json")
    total, count = np.sum([plain_nll(base, tokenizer, row, everything=True) for row in rows[:4]], axis=0)
    assert found["loss"][0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_packed_rows_have_the_first_loss_of_padded_ones(run, rows):
    budget = {"unit": "epochs", "amount": 1}
    packed, apart = (
        read_json(run(rows[:16], budget=budget, batch=16, micro_batch=8, packing=p) / "training.json")
        for p in (True, False)
    )
    assert packed["tokens"] == apart["tokens"]
    assert packed["loss"][0]["loss"] == pytest.approx(apart["loss"][0]["loss"], rel=1e-4)


@pytest.mark.parametrize("changes", [{"dtype": "bf16"}, {"format": "korae", "max_tokens": 256}], ids=str)
def test_it_learns_in_every_setting(changes, run, rows):
    held = read_table(run(rows[:16], held_out=rows[30:], **changes) / "training.parquet")
    assert held["nll"].sum() < 0.8 * held["nll_base"].sum()


def test_gradient_checkpointing_changes_no_bit(run, rows, trained):
    again = run(rows[:16], held_out=rows[30:], gradient_checkpointing=True)
    assert weights(again) == weights(trained)


def test_half_precision_without_a_gpu_is_refused(run, rows):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        run(rows[:4], dtype="fp16")


def test_the_loss_falls(trained):
    losses = read_json(trained / "training.json")["loss"]
    assert [entry["step"] for entry in losses] == [1, 10, 12]
    assert losses[1]["loss"] < 0.8 * losses[0]["loss"]
    held = read_table(trained / "training.parquet")
    assert (held["nll"] < held["nll_base"]).all()


def test_the_first_loss_is_that_of_the_base_on_its_answers(run, rows, base, tokenizer):
    found = read_json(run(rows[:4], budget={"unit": "steps", "amount": 1}) / "training.json")
    total, count = np.sum([plain_nll(base, tokenizer, row) for row in rows[:4]], axis=0)
    assert found["loss"][0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_micro_batches_make_the_same_step(run, rows):
    whole, parts = (read_json(run(rows[:16], micro_batch=n) / "training.json") for n in (4, 2))
    assert parts["tokens"] == whole["tokens"]
    for one, other in zip(whole["loss"], parts["loss"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("batch", "most", "devices", "rows"),
    [(8, 8, 1, 8), (8, 8, 4, 2), (8, 3, 1, 2), (256, 4, 16, 4), (12, 100, 2, 6), (7, 3, 1, 1)],
)
def test_a_micro_batch_is_the_largest_that_fits_a_devices_share_of_the_batch(batch, most, devices, rows):
    assert trainer.rows_at_once(batch // devices, most) == rows


def test_a_micro_batch_may_be_larger_than_the_batch(run, rows, trained):
    assert weights(run(rows[:16], held_out=rows[30:], micro_batch=100)) == weights(trained)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_rises_over_the_warmup(schedule, tmp_path):
    found = settings(schedule=schedule, warmup=4, learning_rate=1.0).train
    arguments = stage.trainer_arguments(found, 1, 12, tmp_path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.warmup_steps, 12)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert (rates[-1] == 1) == (schedule == "constant")


def test_a_warmup_longer_than_the_training_is_refused(run, rows):
    with pytest.raises(ValidationError, match=r"warmup \(13\) is longer than the budget of 12 steps"):
        settings(warmup=13)
    with pytest.raises(UserError, match=r"train\.warmup: 5 steps, but the budget of 1 epochs ends after 4; lower"):
        run(rows[:16], warmup=5, budget={"unit": "epochs", "amount": 1})


@torch.inference_mode()
def plain_nll(folder, tokenizer, row, everything=False):
    """Summed negative log-likelihood of one answer (or text) and its end, and their tokens, one row at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = tokenizer(f"### 질문: {row['instruction']}\n\n### 답변:")["input_ids"]
    answer = [*tokenizer(f" {row['output']}")["input_ids"], tokenizer.eos_token_id]
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    whole = prompt + answer
    places = range(1 if everything else len(prompt), len(whole))
    return -sum(logits[place - 1, whole[place]].item() for place in places), len(places)


def test_the_held_out_loss_is_that_of_a_plain_forward_pass(trained, rows, base, tokenizer):
    held = read_table(trained / "training.parquet")
    assert held[["id", "source"]].to_dict("records") == [
        {key: row[key] for key in ("id", "source")} for row in with_ids(rows[30:])
    ]
    for folder, column in ((base, "nll_base"), (trained / "model", "nll")):
        expected, tokens = zip(*(plain_nll(folder, tokenizer, row) for row in rows[30:]), strict=True)
        assert held[column].tolist() == pytest.approx(list(expected), rel=1e-4)
        assert held["tokens"].tolist() == list(tokens)


def test_nothing_held_out_is_no_trouble(run, rows):
    folder = run(rows[:4], held_out=(), budget={"unit": "steps", "amount": 1})
    assert len(read_table(folder / "training.parquet")) == 0
    assert read_json(folder / "training.json")["steps"] == 1


def test_the_model_folder_contains_no_pickle_and_no_path_of_this_machine(trained, base):
    files = {path.name: path.read_bytes() for path in (trained / "model").rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
    for name, content in files.items():
        for place in (trained, base, base.parent):
            assert str(place).encode() not in content, name


def test_the_report_contains_no_times(trained):
    text = (trained / "training.json").read_text(encoding="utf-8")
    assert sorted(json.loads(text)) == [
        "epochs",
        "held_out_cut",
        "held_out_last_answer",
        "held_out_refused",
        "loss",
        "rows",
        "rows_cut",
        "rows_last_answer",
        "rows_refused",
        "rows_without_answer",
        "steps",
        "token_pairs",
        "tokens",
    ]


def test_another_seed_trains_on_the_same_rows_in_another_order(run, rows, base, tokenizer):
    nlls = [plain_nll(base, tokenizer, row) for row in rows[:16]]
    firsts = []
    for seed in (1, 4):
        found = read_json(run(rows[:16], seed=seed, budget={"unit": "epochs", "amount": 1}) / "training.json")
        steps = presented(Budget(unit="epochs", amount=1), [1] * 16, [1] * 16, 4, seed)
        total, count = np.sum([nlls[row] for row in steps[0]], axis=0)
        assert found["loss"][0]["loss"] == pytest.approx(total / count, rel=1e-4)
        assert (found["steps"], found["rows"]) == (4, 16)
        firsts.append((total / count, found["tokens"]))
    (one, tokens), (other, same_tokens) = firsts
    assert one != pytest.approx(other, rel=5e-4)  # so the seeds' first steps have other rows
    assert tokens == same_tokens
