"""LoRA and 4-bit bases: what is written is what was trained, merged or not."""

import importlib.util

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.lib.core.artifacts import read_json, read_table
from stages.lib.core.errors import UserError
from stages.lib.models import loading
from stages.lib.models.loading import LoadConfig
from stages.lib.models.lora import load_network
from tests.training import LORA, prepare, settings, train_here

FP32 = LoadConfig(dtype="fp32", quantize=None, attn_implementation="sdpa")
FOUR_BITS = FP32.model_copy(update={"quantize": "nf4"})
MERGE = LORA | {"merge": True}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install -e '.[4bit]'"
)


@pytest.fixture(scope="module")
def run(new_folder, base, rows):
    return lambda **changes: train_here(prepare(new_folder(), base, rows[:16], rows[30:]), **changes)


@pytest.fixture(scope="module")
def adapter(run):
    return run(adapter=LORA)


@torch.inference_mode()
def logits(folder, base, config=FP32):
    return load_network(folder, base, config, threads=1)(input_ids=torch.arange(3, 99)[None]).logits


def merged_by_hand(base, adapter):
    """Return the weights of the base, plus alpha / r times B A in every adapted layer."""
    weights = load_file(base / "model.safetensors")
    deltas = load_file(adapter / "adapter_model.safetensors")
    for name, a in deltas.items():
        if "lora_A" in name:
            layer = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[layer] = weights[layer] + LORA["alpha"] / LORA["r"] * deltas[name.replace("lora_A", "lora_B")] @ a
    return weights


def check_merged(merged, adapter, base):
    """Check that merging added the scaled adapter to the adapted layers, up to rounding, and changed nothing else."""
    found, expected = load_file(merged / "model.safetensors"), merged_by_hand(base, adapter)
    before = load_file(base / "model.safetensors")
    assert found.keys() == expected.keys() == before.keys()
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert {name.removesuffix(".weight").rsplit(".")[-1] for name in changed} == set(LORA["modules"])
    assert len(changed) == 2 * 2  # two layers, each with query_key_value and dense
    for name, weight in found.items():
        assert weight.dtype == torch.float32
        assert torch.allclose(weight, expected[name], rtol=0, atol=1e-6), name
    assert max((found[name] - before[name]).abs().max() for name in changed) > 1e-3


def test_merged_weights_are_those_of_the_base_plus_the_scaled_adapter(adapter, run, base):
    check_merged(run(adapter=MERGE) / "model", adapter / "model", base)


def test_merged_weights_answer_as_the_adapter_does(adapter, run, base):
    merged = run(adapter=MERGE)
    assert (logits(merged / "model", base) - logits(adapter / "model", base)).abs().max() < 1e-4
    assert (logits(adapter / "model", base) - logits(base, base)).abs().max() > 1e-2
    assert read_json(merged / "training.json") == read_json(adapter / "training.json")
    assert read_table(merged / "training.parquet")["nll"].tolist() == pytest.approx(
        read_table(adapter / "training.parquet")["nll"].tolist(), rel=1e-5
    )


def test_adapter_and_merged_weights_are_never_in_one_folder(adapter, run):
    apart = {path.name for path in (adapter / "model").iterdir()}
    merged = {path.name for path in (run(adapter=MERGE) / "model").iterdir()}
    assert "adapter_model.safetensors" in apart
    assert not {"model.safetensors", "config.json", "README.md"} & apart
    assert {"model.safetensors", "config.json", "chat_template.jinja"} <= merged
    assert not [name for name in merged if "adapter" in name]


def test_an_adapter_is_trained_on_the_named_modules_only(adapter):
    trained = load_file(adapter / "model" / "adapter_model.safetensors")
    assert {name.split(".lora_")[0].rsplit(".")[-1] for name in trained} == {"query_key_value", "dense"}
    assert {len(tensor) for name, tensor in trained.items() if "lora_A" in name} == {8}


def test_an_adapter_twice_has_the_same_bytes_and_learns(adapter, run):
    again = run(adapter=LORA)
    for path in (adapter / "model").iterdir():
        if path.name != "adapter_config.json":  # it contains the base's path
            assert path.read_bytes() == (again / "model" / path.name).read_bytes(), path.name
    held = read_table(adapter / "training.parquet")
    assert held["nll"].sum() < held["nll_base"].sum()


def test_a_module_that_the_model_lacks_is_named(run):
    with pytest.raises(UserError, match=r"no q_proj in the model; it has .*query_key_value"):
        run(adapter=LORA | {"modules": ["q_proj", "dense"]})


@pytest.fixture(scope="module")
def wide(build, save, tokenizer):
    """A base wide enough for blocks of 64 weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.02}
    return save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", **sizes), tokenizer)


@pytest.fixture(scope="module")
def on_four_bits(new_folder, wide, rows):
    """Train on the wide base in 4 bits."""
    return lambda **changes: train_here(prepare(new_folder(), wide, rows[:16], rows[30:]), quantize="nf4", **changes)


@pytest.fixture(scope="module")
def adapter_on_four_bits(on_four_bits):
    return on_four_bits(adapter=LORA)


@needs_bitsandbytes
def test_a_base_of_four_bits_has_rounded_weights(wide):
    network = load_network(wide, wide, FOUR_BITS, threads=1)
    whole = load_file(wide / "model.safetensors")
    for path, module in network.named_modules():
        if path.endswith("query_key_value"):
            assert module.weight.dtype == torch.uint8
            assert module.weight.numel() == whole[f"{path}.weight"].numel() / 2  # two weights in a byte
    difference = (logits(wide, wide, FOUR_BITS) - logits(wide, wide)).abs().max()
    assert 0 < difference < 0.2 * logits(wide, wide).abs().max()


@needs_bitsandbytes
def test_an_adapter_is_trained_on_a_base_of_four_bits(adapter_on_four_bits, wide):
    held = read_table(adapter_on_four_bits / "training.parquet")
    assert held["nll"].sum() < held["nll_base"].sum()
    folder = adapter_on_four_bits / "model"
    network = load_network(folder, wide, FOUR_BITS, threads=1)
    assert {module.weight.dtype for name, module in network.named_modules() if name.endswith("base_layer")} == {
        torch.uint8
    }
    assert (logits(folder, wide, FOUR_BITS) - logits(wide, wide, FOUR_BITS)).abs().max() > 1e-2


@needs_bitsandbytes
def test_an_adapter_of_a_base_of_four_bits_is_merged_into_whole_weights(adapter_on_four_bits, on_four_bits, wide):
    merged, adapter = on_four_bits(adapter=MERGE, gradient_checkpointing=True), adapter_on_four_bits
    check_merged(merged / "model", adapter / "model", wide)
    assert "quantization_config" not in read_json(merged / "model" / "config.json")
    assert read_json(merged / "training.json") == read_json(adapter / "training.json")


def test_four_bits_without_bitsandbytes_name_what_to_install(run, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes; `pip install .*\[4bit\]"):
        run(adapter=LORA, quantize="nf4")


@pytest.mark.parametrize("changes", [{}, {"adapter": LORA, "deepspeed": {}}])
def test_four_bits_are_for_adapters_without_deepspeed(changes):
    with pytest.raises(ValidationError, match="set an adapter, and deepspeed: null"):
        settings(quantize="nf4", **changes)
