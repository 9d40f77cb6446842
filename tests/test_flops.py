"""Counted operations are those that torch counts, and what curation saves is what a full training costs more."""

import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import RobertaModel

from stages.lib.core.artifacts import read_json
from stages.lib.models.flops import Size, arm_costs, forward_flops, selection_cost
from stages.weigh import Params, weigh

WIDE = {"hidden_size": 128, "intermediate_size": 512, "attn_implementation": "eager"}
MODELS = {
    "untied": ("base", "GPTNeoXConfig", "GPTNeoXForCausalLM", {"tie_word_embeddings": False}),
    "tied": ("scorer", "GPTNeoXConfig", "GPTNeoXForCausalLM", {"tie_word_embeddings": True}),
    "encoder": ("encoder", "RobertaConfig", "RobertaModel", {"max_position_embeddings": 66}),
    "a narrow table": ("encoder", "ElectraConfig", "ElectraModel", {"embedding_size": 32}),
}
SIZE = Size(parameters=50, multiplied=10, layers=1, width=2)


@pytest.fixture(params=MODELS)
def weighed(request, build, save, tokenizer, tmp_path):
    role, config, model, changes = MODELS[request.param]
    network = build(config, model, **WIDE, **changes)
    weigh(Params(), role, save(network, tokenizer), tmp_path / "size.json")
    return network, Size(**read_json(tmp_path / "size.json"))


def test_every_parameter_is_counted_once(weighed):
    network, size = weighed
    assert size.parameters == network.num_parameters()
    assert (size.layers, size.width) == (2, 128)


def test_masks_that_were_saved_with_the_weights_are_no_parameters(lm, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(lm, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"gpt_neox.layers.0.attention.bias": torch.ones(9, 9, dtype=torch.bool)}, folder / "model.safetensors"
    )
    weigh(Params(), "base", folder, tmp_path / "with")
    weigh(Params(), "base", lm, tmp_path / "without")
    assert read_json(tmp_path / "with") == read_json(tmp_path / "without")


@pytest.mark.parametrize("length", [8, 60])
def test_a_forward_pass_costs_what_torch_counts(weighed, length):
    network, size = weighed
    ids = torch.randint(10, 200, (3, length))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(input_ids=ids)
    tolerance = 0.08 if isinstance(network, RobertaModel) else 0.03  # its pooler sees one token of a row
    assert forward_flops(size, 3 * length, 3 * length**2) == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_training_costs_three_times_as_much(build):
    network = build("GPTNeoXConfig", "GPTNeoXForCausalLM", **WIDE)
    ids = torch.randint(10, 200, (2, 40))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(input_ids=ids)
    with FlopCounterMode(display=False) as both:
        network(input_ids=ids, labels=ids).loss.backward()
    assert both.get_total_flops() == pytest.approx(3 * forward.get_total_flops(), rel=0.02)


def test_a_repeated_instruction_is_scored_once():
    scores = pd.DataFrame({"text": ["a", "b", "a"], "tokens": [3, 0, 3]})
    found = selection_cost(scores, SIZE, SIZE)
    assert (found["rows"], found["tokens"]) == (2, 5)
    assert found["ppl_flops"] == 2 * 10 * (4 + 1) + 4 * 1 * 2 * (16 + 1)


def arm(rows, epochs=2.0, candidates=100):
    training = {"epochs": epochs, "rows": rows, "rows_without_answer": 0, "tokens": int(10 * epochs * rows)}
    return {"sample": {"rows": rows, "candidates": candidates}, "train": training}


@pytest.mark.parametrize("others", [{}, {"full": arm(100)}])
def test_what_is_saved_is_the_full_training_whether_it_was_done_or_not(others):
    arms = {"spread": arm(1), "random": arm(1)} | others
    methods = {"spread": "spread", "random": "random", "full": "all"}
    found = arm_costs(arms, methods, "random", "epochs", 7, SIZE)
    assert found["spread"]["saved_flops"] == 99 * found["spread"]["training_flops"] > 0
    assert [found[name]["selection_flops"] for name in arms] == [7, 0, 0][: len(arms)]
    if others:
        assert found["full"]["saved_flops"] == 0


def test_without_arms_there_is_no_cost_of_any():
    assert arm_costs({}, {}, None, "epochs", 7, SIZE) == {}
