"""LoRA and 4-bit bases: what is written is what was trained, merged or not."""

import importlib.util

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.lib.core.artifacts import read_json, read_table
from stages.lib.core.errors import UserError
from stages.lib.models import lora
from stages.lib.models.lora import LoadConfig, load
from tests.training import LORA, prepare, settings, train_here

FP32 = LoadConfig(dtype="fp32", quantize=None, attn_implementation="sdpa")
FOUR_BITS = FP32.model_copy(update={"quantize": "nf4"})
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install -e '.[4bit]'"
)


@pytest.fixture(scope="module")
def run(new_folder, base, rows):
    return lambda **changes: train_here(prepare(new_folder(), base, rows[:16], rows[30:]), **changes)


@pytest.fixture(scope="module")
def lora(run):
    return run(adapter=LORA)


@torch.inference_mode()
def logits(folder, base, form=FP32):
    return load(folder, base, form, threads=1)(input_ids=torch.arange(3, 99)[None]).logits


def test_merged_weights_answer_as_the_adapter_does(lora, run, base):
    merged = run(adapter=LORA | {"merge": True})
    assert (logits(merged / "model", base) - logits(lora / "model", base)).abs().max() < 1e-4
    assert (logits(lora / "model", base) - logits(base, base)).abs().max() > 1e-2
    assert read_json(merged / "training.json") == read_json(lora / "training.json")
    assert read_table(merged / "training.parquet")["nll"].tolist() == pytest.approx(
        read_table(lora / "training.parquet")["nll"].tolist(), rel=1e-5
    )


def test_adapter_and_merged_weights_are_never_in_one_folder(lora, run):
    apart = {path.name for path in (lora / "model").iterdir()}
    merged = {path.name for path in (run(adapter=LORA | {"merge": True}) / "model").iterdir()}
    assert "adapter_model.safetensors" in apart
    assert not {"model.safetensors", "config.json", "README.md"} & apart
    assert {"model.safetensors", "config.json", "chat_template.jinja"} <= merged
    assert not [name for name in merged if "adapter" in name]


def test_an_adapter_is_trained_on_the_named_modules_alone(lora):
    trained = load_file(lora / "model" / "adapter_model.safetensors")
    assert {name.split(".lora_")[0].rsplit(".")[-1] for name in trained} == {"query_key_value", "dense"}
    assert {len(tensor) for name, tensor in trained.items() if "lora_A" in name} == {8}


def test_an_adapter_twice_has_the_same_bytes_and_learns(lora, run):
    again = run(adapter=LORA)
    for path in (lora / "model").iterdir():
        if path.name != "adapter_config.json":  # it names the folder of the base
            assert path.read_bytes() == (again / "model" / path.name).read_bytes(), path.name
    held = read_table(lora / "training.parquet")
    assert held["nll"].sum() < held["nll_base"].sum()


def test_a_module_that_the_model_lacks_is_named(run):
    with pytest.raises(UserError, match=r"no q_proj in the model; it has .*query_key_value"):
        run(adapter=LORA | {"modules": ["q_proj", "dense"]})


@pytest.fixture(scope="module")
def wide(build, save, tokenizer):
    """A base wide enough for blocks of 64 weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.02}
    return save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", **sizes), tokenizer)


@needs_bitsandbytes
def test_an_adapter_is_trained_on_a_base_of_four_bits(new_folder, wide, rows):
    folder = prepare(new_folder(), wide, rows[:16], rows[30:])
    train_here(folder, adapter=LORA, quantize="nf4")
    held = read_table(folder / "training.parquet")
    assert held["nll"].sum() < held["nll_base"].sum()
    network = load(folder / "model", wide, FOUR_BITS, threads=1)
    assert {module.weight.dtype for name, module in network.named_modules() if name.endswith("base_layer")} == {
        torch.uint8
    }
    assert (logits(wide, wide, FOUR_BITS) - logits(wide, wide)).abs().max() > 0


@needs_bitsandbytes
def test_an_adapter_of_a_base_of_four_bits_is_merged_into_whole_weights(new_folder, wide, rows):
    folder = prepare(new_folder(), wide, rows[:16])
    train_here(folder, adapter=LORA | {"merge": True}, quantize="nf4", gradient_checkpointing=True)
    assert {tensor.dtype for tensor in load_file(folder / "model" / "model.safetensors").values()} == {torch.float32}
    assert "quantization_config" not in read_json(folder / "model" / "config.json")


def test_four_bits_without_bitsandbytes_say_what_to_install(run, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes; `pip install .*\[4bit\]"):
        run(adapter=LORA, quantize="nf4")


@pytest.mark.parametrize("changes", [{}, {"adapter": LORA, "deepspeed": {}}])
def test_four_bits_are_for_adapters_without_deepspeed(changes):
    with pytest.raises(ValidationError, match="wants an adapter, and no deepspeed"):
        settings(quantize="nf4", **changes)
