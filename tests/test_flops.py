"""The operations that are counted are those that torch counts."""

import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import RobertaModel

from stages import train
from stages.lib.core.artifacts import read_json
from stages.lib.models.flops import Size, forward_flops, selection_cost, training_flops
from stages.lib.models.loading import load_tokenizer
from stages.lib.text.chat_format import Example, set_format
from stages.lib.training.collate import token_pairs
from stages.model_size import Params, model_size
from tests.training import settings

WIDE = {"hidden_size": 128, "intermediate_size": 512, "attn_implementation": "eager"}
MODELS = {
    "untied": ("base", "GPTNeoXConfig", "GPTNeoXForCausalLM", {"tie_word_embeddings": False}),
    "tied": ("scorer", "GPTNeoXConfig", "GPTNeoXForCausalLM", {"tie_word_embeddings": True}),
    "encoder": ("encoder", "RobertaConfig", "RobertaModel", {"max_position_embeddings": 66}),
    "a narrow table": ("encoder", "ElectraConfig", "ElectraModel", {"embedding_size": 32}),
}
SIZE = Size(parameters=50, multiplied=10, layers=1, width=2)


def measure(role, model, model_json):
    model_size(Params(), role=role, model=model, model_json=model_json)
    return Size(**read_json(model_json))


@pytest.fixture(params=MODELS)
def measured(request, build, save, tokenizer, tmp_path):
    role, config, model, changes = MODELS[request.param]
    network = build(config, model, **WIDE, **changes)
    return network, measure(role, save(network, tokenizer), tmp_path / "size.json")


def test_every_parameter_is_counted_once(measured):
    network, size = measured
    assert size.parameters == network.num_parameters()
    assert (size.layers, size.width) == (2, 128)


def test_masks_that_were_saved_with_the_weights_are_not_parameters(lm, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(lm, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"gpt_neox.layers.0.attention.bias": torch.ones(9, 9, dtype=torch.bool)}, folder / "model.safetensors"
    )
    assert measure("base", folder, tmp_path / "with") == measure("base", lm, tmp_path / "without")


@pytest.mark.parametrize("length", [8, 60])
def test_a_forward_pass_costs_what_torch_counts(measured, length):
    network, size = measured
    ids = torch.randint(10, 200, (3, length))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(input_ids=ids)
    tolerance = 0.08 if isinstance(network, RobertaModel) else 0.03  # its pooler sees one token of a row
    assert forward_flops(size, 3 * length, 3 * length**2) == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_training_costs_three_times_as_much_as_torch_counts_too(build, save, tokenizer, tmp_path):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM", **WIDE)
    ids = torch.randint(10, 200, (2, 40))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(input_ids=ids)
    with FlopCounterMode(display=False) as both:
        network(input_ids=ids, labels=ids).loss.backward()
    assert both.get_total_flops() == pytest.approx(3 * forward.get_total_flops(), rel=0.02)
    size = measure("base", save(network, tokenizer), tmp_path / "size.json")
    training = {"tokens": 80, "token_pairs": 2 * 40**2}
    assert training_flops(training, size) == pytest.approx(both.get_total_flops(), rel=0.04)


@pytest.mark.parametrize(("packing", "micro_batch"), [(False, 1), (True, 1), (True, 3), (True, 4)])
def test_a_training_costs_what_torch_counts_packed_or_not(packing, micro_batch, build, save, tokenizer, rows, tmp_path):
    base = save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", **WIDE), tokenizer)
    params = settings(
        packing=packing,
        micro_batch=micro_batch,
        max_tokens=256,
        attn_implementation="eager",
        budget={"unit": "steps", "amount": 2},
    )
    chat = load_tokenizer(base)
    set_format(chat, params.train.format, params.train.end, base)
    examples = train.encode_rows(chat, base, rows, params.train)
    with FlopCounterMode(display=False) as counter:
        report = train.run_training(
            params, base, train.plan(params.train, examples, 1), 1, tmp_path / "checkpoints", tmp_path / "model"
        )
    size = measure("base", base, tmp_path / "size.json")
    assert training_flops(report, size) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_flash_attention_multiplies_only_the_tokens_of_a_row():
    step = [[Example([1] * 5, [(1, 5)]), Example([1] * 3, [(1, 3)])], [Example([1] * 2, [(1, 2)])]]
    assert token_pairs(step, None) == 25 + 9 + 4
    assert (token_pairs(step, 1), token_pairs(step, 2), token_pairs(step, 8)) == (64 + 4, 100, 100)


def test_the_cost_of_a_selection_is_that_of_scoring_and_embedding_every_text():
    encoder = SIZE.model_copy(update={"multiplied": 7})
    found = selection_cost(pd.Series([3, 0]), SIZE, encoder)
    assert (found["rows"], found["tokens"]) == (2, 5)
    assert found["ppl_flops"] == 2 * 10 * (4 + 1) + 4 * 1 * 2 * (16 + 1)
    assert found["embed_flops"] == 2 * 7 * (4 + 1) + 4 * 1 * 2 * (16 + 1)
    assert found["flops"] == found["ppl_flops"] + found["embed_flops"]
