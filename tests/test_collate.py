"""Rows as tensors: packing moves them, but changes nothing that they see."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorForSeq2Seq

from stages.lib.text.chat_format import Example
from stages.lib.training.collate import IGNORED, flattened, labels, pack, padded, present
from tests.chats import encode_pairs

LENGTHS = st.lists(st.integers(1, 32), min_size=1, max_size=60)
MODELS = {"neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"), "llama": ("LlamaConfig", "LlamaForCausalLM")}


@given(LENGTHS)
def test_packs_hold_every_row_once_within_the_limit_and_no_two_fit_into_one(lengths):
    examples = [Example([number] * length, [(1, length)]) for number, length in enumerate(lengths)]
    packs = pack(examples, 32)
    assert sorted(present(packs), key=lambda example: example.ids) == examples
    used = sorted(sum(len(example.ids) for example in pack) for pack in packs)
    assert used[-1] <= 32
    assert len(used) < 2 or used[0] + used[1] > 32


@pytest.fixture
def examples(tokenizer, rows):
    return encode_pairs(tokenizer, "koalpaca", rows[:9], 128)


def test_padded_rows_are_those_of_transformers_whatever_the_filler(tokenizer, examples):
    batch = padded([[example] for example in examples])
    features = [{"input_ids": example.ids, "labels": labels(example)} for example in examples]
    theirs = DataCollatorForSeq2Seq(tokenizer)(features)
    assert torch.equal(batch["attention_mask"], theirs["attention_mask"])
    assert torch.equal(batch["labels"], theirs["labels"])
    assert torch.equal(batch["input_ids"] * batch["attention_mask"], theirs["input_ids"] * theirs["attention_mask"])
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_flattened_rows_follow_each_other_and_each_starts_at_position_0(examples):
    batch = flattened([examples[:4], [], examples[4:]])
    assert batch["input_ids"].tolist() == [[token for example in examples for token in example.ids]]
    assert batch["position_ids"].tolist() == [[place for example in examples for place in range(len(example.ids))]]
    expected = [label for example in examples for label in [IGNORED, *labels(example)[1:]]]
    assert batch["labels"].tolist() == [expected]
    assert sorted(batch) == ["input_ids", "labels", "position_ids"]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_a_row_in_a_pack_has_the_logits_that_it_has_alone(model, attention, build, examples):
    network = build(*MODELS[model])
    network.set_attn_implementation(attention)
    (together,) = network(**flattened([examples[:4], examples[4:]]), use_cache=False).logits
    alone = [network(**padded([[example]])).logits[0] for example in examples]
    assert torch.allclose(together, torch.cat(alone), atol=2e-4)


@pytest.mark.parametrize("everything", [False, True])
@torch.inference_mode()
def test_packed_rows_have_the_loss_of_padded_rows(everything, build, examples):
    network = build(*MODELS["neox"])
    if everything:
        examples = [Example(one.ids, [(0, len(one.ids))]) for one in examples]
    packed, apart = flattened([examples]), padded([[example] for example in examples])
    assert (packed["labels"][:, 1:] != IGNORED).sum() == (apart["labels"][:, 1:] != IGNORED).sum()
    assert network(**packed, use_cache=False).loss.item() == pytest.approx(network(**apart).loss.item(), rel=1e-5)


@pytest.mark.parametrize("collate", [padded, flattened])
def test_an_empty_pack_has_no_label_and_moves_no_row(collate, examples):
    packs = [[example] for example in examples]
    for name, tensor in collate(packs).items():
        assert torch.equal(tensor, collate([*packs, [], []])[name])
    filler = collate([[], []])
    assert filler["input_ids"].shape == (1, 1)
    assert (filler["labels"] == IGNORED).all()
