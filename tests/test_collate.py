"""Rows as tensors: packing moves them, and changes nothing that they see."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.text.chat_format import Example, encode
from stages.lib.training.collate import IGNORED, flattened, pack, padded, present

LENGTHS = st.lists(st.integers(1, 32), min_size=1, max_size=60)
MODELS = {"neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"), "llama": ("LlamaConfig", "LlamaForCausalLM")}


@given(LENGTHS)
def test_packs_hold_every_row_once_within_the_limit_and_no_two_fit_into_one(lengths):
    examples = [Example([number] * length, 1) for number, length in enumerate(lengths)]
    packs = pack(examples, 32)
    assert sorted(present(packs), key=lambda example: example.ids) == examples
    used = sorted(sum(len(example.ids) for example in pack) for pack in packs)
    assert used[-1] <= 32
    assert len(used) < 2 or used[0] + used[1] > 32


@pytest.fixture
def examples(tokenizer, rows):
    columns = [row["instruction"] for row in rows], [row["output"] for row in rows]
    return encode(tokenizer, "koalpaca", *columns, 128)[:9]


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
        examples = [Example(ids, 0) for ids, _ in examples]
    packed, apart = flattened([examples]), padded([[example] for example in examples])
    assert (packed["labels"][:, 1:] != IGNORED).sum() == (apart["labels"][:, 1:] != IGNORED).sum()
    assert network(**packed, use_cache=False).loss.item() == pytest.approx(network(**apart).loss.item(), rel=1e-5)


@pytest.mark.parametrize("collate", [padded, flattened])
def test_what_fills_a_step_up_has_no_label_and_moves_no_row(collate, examples):
    packs = [[example] for example in examples]
    for name, tensor in collate(packs).items():
        assert torch.equal(tensor, collate([*packs, [], []])[name])
    filler = collate([[], []])
    assert filler["input_ids"].shape == (1, 1)
    assert (filler["labels"] == IGNORED).all()
