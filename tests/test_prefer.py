"""Preferences (DPO): the reference is the arm, the tokens are those of its fine-tuning, placebos differ in labels."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from stages.lib.core.artifacts import read_json, read_table, write_json
from stages.lib.core.errors import UserError
from stages.lib.models.loading import load_tokenizer
from stages.lib.models.lora import SETTINGS
from stages.lib.text.chat_format import render
from stages.lib.text.conversations import Turn
from stages.lib.training import callbacks, preference
from stages.lib.training.pairs import REFUSED, TOO_LONG, Pair, encode_pairs, swap_half
from stages.prefer import Params
from tests.chats import encode_pairs as encode_rows
from tests.chats import template_of, with_control_tokens
from tests.preferring import (
    params_with,
    polite_pairs,
    prefer_apart,
    prefer_here,
    prefer_killed,
    prepare_arm,
    write_pairs,
)
from tests.preferring import preference as settings_of


@pytest.fixture(scope="module")
def arm(new_folder, build, tokenizer, rows):
    """An arm whose config has dropout, as many published models have."""
    network = build(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        initializer_range=0.1,
        attention_dropout=0.5,
        hidden_dropout=0.1,
    )
    folder = new_folder()
    network.save_pretrained(folder / "arm")
    tokenizer.save_pretrained(folder / "arm")
    return prepare_arm(folder, polite_pairs(rows[:16]), rows[30:34])


@pytest.fixture(scope="module")
def preferred(arm, new_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "LOG_STEPS", 2)
        return prefer_here(arm, new_folder())


@pytest.mark.slow
def test_two_processes_have_the_losses_and_margins_of_one(arm, new_folder):
    alone, shared = new_folder(), new_folder()
    prefer_here(arm, alone)
    log = prefer_apart(arm, shared, processes=2)
    assert "0 of 6 steps are done, processes: 2" in log
    one, two = (read_json(folder / "training.json") for folder in (alone, shared))
    for mine, theirs in zip(two.pop("loss"), one.pop("loss"), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert one == two
    margins = [read_table(folder / "prefer.parquet")["margin"] for folder in (alone, shared)]
    assert margins[0].to_numpy() == pytest.approx(margins[1].to_numpy(), abs=1e-3)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(preferred):
    first, *_, last = read_json(preferred / "training.json")["loss"]
    assert first == {"step": 1, "loss": pytest.approx(math.log(2), abs=1e-6)}
    assert last["loss"] < 0.67


def test_a_policy_that_differs_from_its_reference_is_an_error(arm, new_folder, monkeypatch):
    monkeypatch.setattr(preference, "switch_off_dropout", lambda _: None)
    with pytest.raises(UserError, match=r"the loss before the first step is 0\.\d+, not ln 2 = 0\.693147"):
        prefer_here(arm, new_folder())


def test_a_killed_run_gives_the_bytes_of_one_that_was_not(arm, preferred, new_folder, monkeypatch, caplog):
    caplog.set_level("INFO", logger="stages")
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(callbacks, "LOG_STEPS", 2)
    killed = new_folder()
    prefer_killed(arm, killed, step=5)
    (written,) = (killed / "checkpoints/prefer").iterdir()
    assert not (killed / "model").exists()
    assert callbacks.newest(written).name == "checkpoint-4"
    prefer_here(arm, killed)
    assert "4 of 6 steps are done" in caplog.text
    assert not written.exists()
    assert files(killed) == files(preferred)


def test_the_model_is_the_arms_with_other_weights(arm, preferred):
    ours, theirs = files(preferred / "model"), files(arm / "arm")
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"model.safetensors"}


def test_margins_are_those_of_a_plain_loop_over_full_softmaxes(arm, preferred, rows):
    found = read_table(preferred / "prefer.parquet")
    held_out = polite_pairs(rows[:16])[12:]
    tokenizer = load_tokenizer(arm / "arm")
    texts = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in held_out]
    for when, folder in (("before", arm / "arm"), ("after", preferred / "model")):
        network = AutoModelForCausalLM.from_pretrained(folder)
        for row, pair in enumerate(encode_pairs(tokenizer, texts, 128)):
            for name, ids in zip(("chosen", "rejected"), pair.conversations(), strict=True):
                with torch.inference_mode():
                    logs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                wanted = sum(logs[n - 1, ids[n]].item() for n in range(len(pair.prompt), len(ids)))
                assert found[f"{name}_{when}"][row] == pytest.approx(wanted, abs=1e-3)
    gain = {name: found[f"{name}_after"] - found[f"{name}_before"] for name in ("chosen", "rejected")}
    assert np.allclose(found["margin"], 0.1 * (gain["chosen"] - gain["rejected"]), rtol=1e-12)
    assert found["margin"].min() > 0.05
    assert found["id"].tolist() == [pair["id"] for pair in held_out]
    assert found["chosen_characters"].tolist() == [len(pair["chosen"]) for pair in held_out]


def test_the_table_of_held_out_losses_keeps_the_losses_of_the_base(arm, preferred):
    before, after = read_table(arm / "arm.parquet"), read_table(preferred / "training.parquet")
    assert after.drop(columns="nll").equals(before.drop(columns="nll"))
    assert (after["nll"] != before["nll"]).all()


@pytest.mark.parametrize("name", ["koalpaca", "korae", "chatml"])
def test_a_prompt_and_an_answer_are_the_text_and_the_tokens_of_the_fine_tuning(name, tokenizer, rows):
    chat = with_control_tokens(tokenizer)
    chat.chat_template = template_of(name)
    pairs = encode_pairs(chat, [(row["instruction"], row["output"], "모른다.") for row in rows], 1000)
    for row, pair, example in zip(rows, pairs, encode_rows(chat, name, rows, 1000), strict=True):
        (start, stop), turns = example.answers[-1], [Turn("user", row["instruction"]), Turn("assistant", row["output"])]
        assert (pair.prompt, pair.chosen) == (example.ids[:start], example.ids[start:stop])
        text, _ = render(chat, turns)
        assert chat.decode(pair.prompt + pair.chosen) == text.rstrip("\n")
        assert pair.chosen.count(pair.chosen[-1]) == 1  # its end


def test_what_trl_gets_are_these_tokens_and_each_step_has_its_fillers(arm, rows):
    tokenizer = load_tokenizer(arm / "arm")
    pairs = encode_pairs(tokenizer, [(row["instruction"], row["output"], "모른다.") for row in rows[:3]], 128)
    data = preference.to_dataset([pairs[:2], pairs[2:]], 2)
    batches = [preference.collate_pairs([data[n] for n in numbers]) for numbers in ((0, 1), (2, 3))]
    assert [batch["weights"].tolist() for batch in batches] == [[1.0, 1.0], [2.0, 0.0]]
    for batch, members in zip(batches, (pairs[:2], [pairs[2], preference.FILLER]), strict=True):
        wanted = [pair.conversations()[answer] for answer in (0, 1) for pair in members]
        lengths = batch["attention_mask"].sum(1).tolist()
        assert [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)] == wanted
        answers = [pair[answer] for answer in (1, 2) for pair in members]
        assert batch["completion_mask"].sum(1).tolist() == [len(answer) for answer in answers]


def test_a_step_that_is_not_full_is_the_mean_of_its_pairs(arm, rows, new_folder):
    folder = new_folder()
    for path in arm.iterdir():
        (folder / path.name).symlink_to(path) if path.name != "pairs.parquet" else None
    write_pairs(folder / "pairs.parquet", polite_pairs(rows[:4], held_out=1))
    runs = [
        prefer_here(folder, new_folder(), budget={"unit": "steps", "amount": 2}, batch=batch, micro_batch=micro)
        for batch, micro in ((3, 3), (4, 2))
    ]
    full, filled = (read_json(run / "training.json")["loss"] for run in runs)
    assert [one["loss"] for one in filled] == pytest.approx([one["loss"] for one in full], abs=1e-6)
    margins = [read_table(run / "prefer.parquet")["margin"] for run in runs]
    assert np.allclose(*margins, atol=1e-4)
    assert margins[0].abs().min() > 1e-3


def test_shuffled_labels_swap_exactly_half_of_the_pairs_to_train_on(arm, preferred, new_folder):
    placebo = prefer_here(arm, new_folder(), settings_of(labels="shuffled"))
    found = read_json(placebo / "training.json")
    assert (found["pairs"], found["pairs_swapped"]) == (12, 6)
    assert read_json(preferred / "training.json")["pairs_swapped"] == 0
    real, other = (read_table(folder / "prefer.parquet") for folder in (preferred, placebo))
    kept = ["id", "chosen_tokens", "rejected_tokens", "chosen_before", "rejected_before", "chosen_characters"]
    assert other[kept].equals(real[kept])
    assert (other["margin"] < real["margin"]).all()


@pytest.mark.parametrize("count", [2, 7, 100])
def test_which_half_is_swapped_depends_on_the_seed_and_the_ids_only(count):
    pairs, ids = [Pair([n], [1], [2]) for n in range(count)], [f"pair{n}" for n in range(count)]
    draws = [swap_half(pairs, ids, seed) for seed in (1, 1, 2)]
    swapped = [{pair.prompt[0] for pair in draw if pair.chosen == [2]} for draw in draws]
    assert [len(draw) for draw in swapped] == [count // 2] * 3
    assert swapped[0] == swapped[1]
    if count == 100:
        assert 10 < len(swapped[0] & swapped[2]) < 40
    back = swap_half(pairs[::-1], ids[::-1], 1)
    assert {pair.prompt[0] for pair in back if pair.chosen == [2]} == swapped[0]


def test_pairs_that_are_too_long_are_left_out_and_counted(arm, new_folder, rows):
    tokenizer = load_tokenizer(arm / "arm")
    texts = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in polite_pairs(rows[:16])]
    longest = [max(map(len, pair.conversations())) for pair in encode_pairs(tokenizer, texts, 1000)]
    limit = sorted(longest)[8]
    found = read_json(prefer_here(arm, new_folder(), max_tokens=limit) / "training.json")
    assert found["pairs_too_long"] == sum(length > limit for length in longest[:12]) > 0
    assert found["pairs"] == 12 - found["pairs_too_long"]
    assert found["held_out_pairs_too_long"] == sum(length > limit for length in longest[12:]) > 0
    assert encode_pairs(tokenizer, texts, limit).count(TOO_LONG) == sum(length > limit for length in longest)


def test_a_pair_that_the_template_refuses_has_no_tokens(tokenizer):
    chat = with_control_tokens(tokenizer)
    chat.chat_template = "{{ raise_exception('no') }}"
    assert encode_pairs(chat, [("물은?", "액체", "고체")], 100) == [REFUSED]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SETTINGS, {}, "it has only an adapter.*train.adapter.merge: true.*train@ours"),
        (
            "config.json",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "its weights are in 4 bits.*train.quantize: null",
        ),
    ],
)
def test_an_arm_without_full_weights_is_refused_with_what_to_set(name, content, message, arm, new_folder):
    folder = new_folder()
    (folder / "arm").mkdir()
    write_json(folder / "arm/config.json", {})
    write_json(folder / "arm" / name, content)
    with pytest.raises(UserError, match=message):
        prefer_here(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"r": 4, "alpha": 8, "modules": ["q_proj"]}}, r"dpo\.adapter\.modules: no q_proj in the model"),
        (
            {"max_tokens": 4},
            "no pairs to train on that fit: of 16, 12 are usable.*12 are too long.*raise dpo.max_tokens",
        ),
        ({"warmup": 7}, r"dpo\.warmup: 7 steps, but the budget of 6 steps ends after 6; lower warmup, or raise dpo"),
        ({"learning_rate": 1e30}, "step 2 of 6: the .* is nan; try a lower dpo.learning_rate"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message, arm, new_folder):
    with pytest.raises(UserError, match=message):
        prefer_here(arm, new_folder(), **changes)


@pytest.mark.parametrize(
    ("prefer", "message"),
    [
        ({"ours": settings_of()}, "prefer.ours: an arm has this name"),
        ({"base": settings_of()}, "prefer.base: an arm has this name, or a folder in models/"),
        ({"x": settings_of(arm="theirs")}, "prefer.x.arm: 'theirs' is not an arm; the arms are ours, ours_2, others"),
        ({"x": settings_of(pairs="rude")}, "prefer.x.pairs: 'rude' is not in fetch_preferences, which has polite"),
        ({"x": settings_of(replicate="y")}, "prefer.x.replicate: 'y' is not a preference, or is itself a replicate"),
        (
            {"x": settings_of(), "y": settings_of(seed=2, replicate="x"), "z": settings_of(seed=3, replicate="y")},
            "prefer.z.replicate: 'y' is not a preference, or is itself a replicate",
        ),
        (
            {"x": settings_of(), "y": settings_of(seed=2, labels="shuffled", replicate="x")},
            "prefer.y: a replicate of x must have the same labels",
        ),
        (
            {"x": settings_of(), "y": settings_of(seed=2, arm="others", replicate="x")},
            "prefer.y: a replicate of x must have the same arm, or another run of it",
        ),
        ({"x": settings_of(), "y": settings_of(replicate="x")}, "prefer.y: x has the same arm.*one run, not two"),
        ({"x": settings_of(labels="shuffled"), "y": settings_of(labels="shuffled")}, "prefer.y: x has the same arm"),
    ],
)
def test_names_arms_pairs_and_replicates_are_checked(prefer, message):
    with pytest.raises(ValidationError, match=message):
        Params.model_validate(params_with(prefer))


def test_no_preference_and_replicates_with_other_seeds_are_accepted():
    assert Params.model_validate(params_with({})).prefer == {}
    placebos = {f"p{seed}": settings_of(labels="shuffled", seed=seed, replicate="p1") for seed in (2, 3)}
    found = Params.model_validate(params_with({"x": settings_of(), "p1": settings_of(labels="shuffled")} | placebos))
    assert len(found.prefer) == 4
    other_run = settings_of(arm="ours_2", replicate="x")  # the same seed, but another run of the arm
    assert Params.model_validate(params_with({"x": settings_of(), "y": other_run}))


def test_without_a_held_out_pair_nothing_is_trained(arm, new_folder):
    folder, out = new_folder(), new_folder()
    for name in ("arm", "arm.parquet", "held_out.jsonl"):
        (folder / name).symlink_to(arm / name)
    table = read_table(arm / "pairs.parquet").to_dict("records")
    write_pairs(folder / "pairs.parquet", [pair | {"held_out": False, "reason": None} for pair in table])
    with pytest.raises(UserError, match="it has no held-out pairs that fit: of 16, 0 are usable held-out pairs"):
        prefer_here(folder, out)
    assert not (out / "checkpoints").exists()
