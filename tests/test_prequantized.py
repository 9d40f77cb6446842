"""A model that was saved in 4 bits is fetched, loaded, evaluated and trained on as it is."""

import json
import shutil

import pytest
import torch

from stages import evaluate, fetch_model
from stages.lib.core.artifacts import read_json, read_table
from stages.lib.core.errors import UserError
from stages.lib.models import loading
from stages.lib.models.loading import LoadConfig, load_model
from stages.lib.models.lora import load_network
from stages.model_size import Params as SizeParams
from stages.model_size import model_size
from tests.training import LORA, prepare, train_here

BF16 = LoadConfig(dtype="bf16")
KINDS = {
    "nf4": {"dtype": torch.float32, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"dtype": torch.float16, "bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "bfloat16"},
}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def wide(build, save, tokenizer):
    """A base wide enough for blocks of 64 weights."""
    return save(build("GPTNeoXConfig", "GPTNeoXForCausalLM", hidden_size=64, intermediate_size=128), tokenizer)


@pytest.fixture(scope="module", params=KINDS)
def quantized(request, wide, tokenizer, save):
    """A model in 4 bits in memory, and the folder where it was saved."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = KINDS[request.param]
    dtype = kind["dtype"]
    config = BitsAndBytesConfig(load_in_4bit=True, **({"bnb_4bit_compute_dtype": dtype} | kind))
    model = AutoModelForCausalLM.from_pretrained(wide, dtype=dtype, quantization_config=config, device_map={"": "cpu"})
    return model.eval(), save(model, tokenizer)


def fetch(folder, out):
    entry = {"from": "folder", "inputs": "data/mine", "name": None, "revision": None, "small": None}
    params = fetch_model.Params.model_validate({"threads": 1, "fetch_model": {"base": entry}})
    fetch_model.fetch_model(params, "base", folder, out / "base")
    return out / "base"


@pytest.fixture(scope="module")
def fetched(quantized, new_folder):
    return fetch(quantized[1], new_folder())


@pytest.fixture
def claimed(lm, tmp_path):
    """Copy a model whose config says that it is quantized."""

    def copy(**quantization):
        folder = tmp_path / "claimed"
        shutil.copytree(lm, folder)
        config = read_json(folder / "config.json") | {"quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def test_fetch_model_copies_every_file_unchanged(quantized, fetched):
    source = {path.name: path.read_bytes() for path in quantized[1].iterdir()}
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == source
    assert b".quant_state.bitsandbytes__" in source["model.safetensors"]


def test_its_logits_are_exactly_its_sources_whatever_dtype_says(quantized, fetched):
    network = load_model(fetched, BF16, threads=1)
    assert network.is_loaded_in_4bit
    assert network.config.quantization_config.bnb_4bit_quant_type in KINDS
    assert network.dtype == quantized[0].dtype != torch.bfloat16
    assert torch.equal(logits(network), logits(quantized[0]))


def test_its_parameters_are_those_of_the_whole_model(wide, fetched, tmp_path):
    sizes = []
    for folder in (wide, fetched):
        model_size(SizeParams(), role="base", model=folder, model_json=tmp_path / "size.json")
        sizes.append(read_json(tmp_path / "size.json"))
    assert sizes[0] == sizes[1]


def evaluation_of(model, benchmark, folder, quantize=None):
    given = {"tasks": ["copa"], "shots": [0], "batch": 8, "dtype": "fp32", "quantize": quantize, "chat": False}
    params = evaluate.Params.model_validate({"threads": 1, "evaluate": given})
    evaluate.evaluate(params, "base", model, model, benchmark, folder / "checkpoints", folder / "base")
    return read_table(folder / "base/items.parquet")


def test_it_is_evaluated_with_its_own_likelihoods(quantized, fetched, benchmark, tmp_path, monkeypatch):
    found = evaluation_of(fetched, benchmark, tmp_path / "fetched")
    monkeypatch.setattr(evaluate, "load_network", lambda *_: quantized[0])
    assert len(found) == 6
    assert found.equals(evaluation_of(fetched, benchmark, tmp_path / "source"))


def test_quantizing_it_again_is_an_error(fetched, benchmark, tmp_path):
    with pytest.raises(UserError, match=r"quantize: nf4: .* is already in 4 bits; set quantize: null"):
        evaluation_of(fetched, benchmark, tmp_path, "nf4")
    with pytest.raises(UserError, match="is already in 4 bits; set quantize: null"):
        train_here(prepare(tmp_path, fetched, []), quantize="nf4", adapter=LORA)


def test_without_bitsandbytes_the_extra_is_named(claimed, benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    folder = claimed(quant_method="bitsandbytes", load_in_4bit=True)
    with pytest.raises(UserError, match=r"saved in 4 bits needs bitsandbytes; `pip install .*\[4bit\]"):
        evaluation_of(folder, benchmark, tmp_path)


@pytest.mark.parametrize("saved", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}])
def test_other_quantizations_stop_when_the_model_is_fetched(saved, claimed, tmp_path):
    with pytest.raises(UserError, match=f"quantized by {saved['quant_method']}, but only 4 bits of bitsandbytes"):
        fetch(claimed(**saved), tmp_path)


@pytest.mark.parametrize("adapter", [None, LORA | {"merge": True}])
def test_its_weights_are_not_trained_and_take_in_no_adapter(adapter, claimed, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "find_spec", lambda _: "there")
    base = claimed(quant_method="bitsandbytes", load_in_4bit=True)
    with pytest.raises(UserError, match=r"saved in 4 bits: .* set train.adapter with merge: false"):
        train_here(prepare(tmp_path / "run", base, []), adapter=adapter)


def test_an_adapter_is_trained_on_it(fetched, rows, tmp_path):
    folder = train_here(prepare(tmp_path, fetched, rows[:16], rows[30:]), adapter=LORA)
    held = read_table(folder / "training.parquet")
    assert held["nll"].sum() < held["nll_base"].sum()
    tuned = load_network(folder / "model", fetched, BF16, threads=1)
    assert not torch.equal(logits(tuned), logits(load_model(fetched, BF16, threads=1)))
