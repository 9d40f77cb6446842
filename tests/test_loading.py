"""Every weight of a model comes from its files: what a file lacks is never filled with random numbers in silence."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import embed, fetch_model
from stages.lib.core.artifacts import read_json, read_table
from stages.lib.core.errors import UserError
from stages.lib.models.loading import LoadConfig, load_model
from stages.lib.models.lora import load_network

FP32 = LoadConfig(dtype="fp32")
ENCODERS = {
    "bert": ("BertConfig", "BertForMaskedLM"),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM"),
    "a classifier": ("RobertaConfig", "RobertaForSequenceClassification"),
    "electra": ("ElectraConfig", "ElectraForPreTraining"),
}
WITH_POOLER = {"bert for pretraining": ("BertConfig", "BertForPreTraining"), "albert": ("AlbertConfig", "AlbertModel")}
NO_LM = {
    "without its head": (("GPTNeoXConfig", "GPTNeoXModel"), {}, "lm_head.weight"),
    "a classifier": (("GPTNeoXConfig", "GPTNeoXForSequenceClassification"), {}, "lm_head.weight"),
    "a classifier, tied": (("LlamaConfig", "LlamaForSequenceClassification"), {"tie": True}, "score.weight"),
    "a tagger, tied": (("LlamaConfig", "LlamaForTokenClassification"), {"tie": True}, "score.bias, score.weight"),
    "two heads": (("GPT2Config", "GPT2DoubleHeadsModel"), {"tie": True}, "multiple_choice_head.summary.bias"),
    "an encoder": (("BertConfig", "BertModel"), {}, "cls.predictions.bias"),
}
LMS = {
    "neox": (("GPTNeoXConfig", "GPTNeoXForCausalLM"), {}),
    "llama, tied": (("LlamaConfig", "LlamaForCausalLM"), {"tie": True}),
    "gpt2 without a head, tied": (("GPT2Config", "GPT2Model"), {"tie": True}),
}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install -e '.[4bit]'"
)


@pytest.fixture
def saved(build, save, tokenizer):
    """Save a model of an architecture; `tie` shares its input embeddings with its head."""

    def make(names, tie=False, **changes):
        return save(build(*names, tie_word_embeddings=tie, **changes), tokenizer)

    return make


def edit_weights(folder, change, name="model.safetensors"):
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name, {"format": "pt"})
    return folder


@pytest.fixture
def vectors(write_raw, questions, new_folder):
    """Embed all questions with an encoder; return the vectors."""

    def run(encoder, pooling):
        settings = {"max_tokens": 32, "pooling": pooling, "batch_tokens": 256, "dtype": "fp32"}
        params, folder = embed.Params.model_validate({"threads": 1, "embed": settings}), new_folder()
        embed.embed(params, write_raw(questions), encoder, folder / "checkpoints", folder / "embeddings.parquet")
        return np.stack(read_table(folder / "embeddings.parquet")["vector"])

    return run


@pytest.mark.parametrize("names", ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_may_lack_the_pooler_that_mean_and_cls_do_not_use(names, saved, vectors):
    encoder = saved(names)
    assert not [name for name in load_file(encoder / "model.safetensors") if "pooler" in name]
    for pooling in ("mean", "cls"):
        assert np.array_equal(vectors(encoder, pooling), vectors(encoder, pooling))


@pytest.mark.parametrize("names", [ENCODERS["bert"], ENCODERS["roberta"]], ids=["bert", "roberta"])
def test_a_pooler_that_is_not_in_the_files_stops(names, saved, vectors):
    with pytest.raises(UserError, match=r"pooler\.dense\.bias, pooler\.dense\.weight.*embed\.pooling.*mean or cls"):
        vectors(saved(names), "pooler")


@pytest.mark.parametrize("names", WITH_POOLER.values(), ids=WITH_POOLER)
def test_a_pooler_in_the_files_is_used(names, saved, vectors):
    encoder = saved(names)
    assert np.array_equal(vectors(encoder, "pooler"), vectors(encoder, "pooler"))


def test_an_encoder_may_lack_nothing_else(saved, vectors):
    encoder = edit_weights(
        saved(ENCODERS["bert"]), lambda weights: weights.pop("bert.encoder.layer.1.output.dense.weight")
    )
    with pytest.raises(UserError, match=r"lacks encoder\.layer\.1\.output\.dense\.weight"):
        vectors(encoder, "mean")


@pytest.mark.parametrize(("names", "changes", "named"), NO_LM.values(), ids=NO_LM)
def test_a_checkpoint_that_is_no_causal_lm_stops_and_names_the_weights(names, changes, named, saved):
    folder = saved(names, **changes)
    with pytest.raises(UserError) as caught:
        load_model(folder, FP32, threads=1)
    for part in (str(folder), named, f"saved from a {names[1]}", "AutoModelForCausalLM"):
        assert part in str(caught.value)


def test_a_masked_lm_whose_tokens_see_themselves_is_no_causal_lm(saved):
    folder = saved(ENCODERS["roberta"])
    with pytest.raises(UserError, match="RobertaForCausalLM sees the tokens that it should predict; use a causal LM"):
        load_model(folder, FP32, threads=1)
    assert load_model(saved(("RobertaConfig", "RobertaForCausalLM"), is_decoder=True), FP32, threads=1)


@pytest.mark.parametrize(("names", "changes"), LMS.values(), ids=LMS)
def test_a_causal_lm_loads_with_a_tied_head_and_the_masks_of_older_versions(names, changes, saved):
    folder = saved(names, **changes)
    ids = torch.arange(3, 40)[None]
    before = load_model(folder, FP32, threads=1)(input_ids=ids).logits
    layer = "gpt_neox.layers.0.attention" if "NeoX" in names[0] else "h.0.attn"
    masks = {f"{layer}.masked_bias": torch.tensor(-1e4), f"{layer}.bias": torch.ones(1, 1, 4, 4)}
    edit_weights(folder, lambda weights: weights.update(masks))
    assert torch.equal(load_model(folder, FP32, threads=1)(input_ids=ids).logits, before)


def test_a_value_head_beside_a_whole_causal_lm_stops(saved):
    head = {"v_head.summary.weight": torch.ones(1, 32)}
    folder = edit_weights(saved(LMS["neox"][0]), lambda weights: weights.update(head))
    with pytest.raises(UserError, match=r"v_head\.summary\.weight, which GPTNeoXForCausalLM does not have"):
        load_model(folder, FP32, threads=1)


def test_layers_beyond_those_of_the_config_stop(saved):
    folder = saved(LMS["llama, tied"][0], tie=True)
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "layer_types": None}))
    with pytest.raises(UserError, match=r"model\.layers\.1\.input_layernorm\.weight.* \(9 in all\), which"):
        load_model(folder, FP32, threads=1)


def test_a_weight_of_another_shape_stops_with_both_shapes(saved):
    folder = saved(LMS["neox"][0])
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 90}))
    with pytest.raises(UserError, match=r"embed_in\.weight \(\d+ x 32 in the file, 90 x 32 by config\.json\)"):
        load_model(folder, FP32, threads=1)


@needs_bitsandbytes
def test_a_model_in_four_bits_may_lack_nothing_either(saved):
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    config = LoadConfig(dtype="fp32", quantize="nf4")
    whole = load_model(saved(LMS["neox"][0], **sizes), config, threads=1)
    assert whole.is_loaded_in_4bit
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        load_model(saved(NO_LM["without its head"][0], **sizes), config, threads=1)


@pytest.fixture
def adapter(lm, new_folder):
    """A base, and a LoRA of it in another folder."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["query_key_value", "dense"], init_lora_weights=False)
    folder = new_folder()
    get_peft_model(load_model(lm, FP32, threads=1), config).save_pretrained(folder)
    return lm, folder


LAYER = "base_model.model.gpt_neox.layers.1.attention.dense"


def spoil_adapter(folder, change):
    edit_weights(folder, change, "adapter_model.safetensors")


def test_a_whole_adapter_loads(adapter):
    base, folder = adapter
    assert load_network(folder, base, FP32, threads=1)


def test_an_adapter_that_lacks_a_matrix_stops(adapter):
    base, folder = adapter
    spoil_adapter(folder, lambda weights: weights.pop(f"{LAYER}.lora_B.weight"))
    with pytest.raises(UserError, match=r"lacks .*layers\.1\.attention\.dense\.lora_B\.weight"):
        load_network(folder, base, FP32, threads=1)


def test_an_adapter_of_another_base_stops(adapter):
    base, folder = adapter
    more = {f"{LAYER.replace('layers.1', 'layers.7')}.lora_A.weight": torch.ones(4, 32)}
    spoil_adapter(folder, lambda weights: weights.update(more))
    with pytest.raises(UserError, match=r"layers\.7\.attention\.dense\.lora_A\.weight.*not have"):
        load_network(folder, base, FP32, threads=1)


def test_an_adapter_of_another_width_stops(adapter):
    base, folder = adapter
    spoil_adapter(folder, lambda weights: weights.update({f"{LAYER}.lora_A.weight": torch.ones(4, 48)}))
    with pytest.raises(UserError, match=r"(?s)does not fit .*lora_A"):
        load_network(folder, base, FP32, threads=1)


def convert(folder, out, role):
    """Turn safetensors into pickles, and convert them as fetch_model does."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    fetch_model.convert(role, folder, out)
    return out


def test_a_converted_encoder_has_no_weight_that_its_pickle_lacks(saved, new_folder, vectors):
    encoder = convert(saved(ENCODERS["bert"]), new_folder(), "encoder")
    assert not [name for name in load_file(encoder / "model.safetensors") if "pooler" in name]
    with pytest.raises(UserError, match="pooler"):
        vectors(encoder, "pooler")
    assert len(vectors(encoder, "mean")) == 40


def test_a_pickle_that_is_no_causal_lm_is_not_converted(saved, new_folder):
    out = new_folder()
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        convert(saved(NO_LM["a classifier"][0]), out, "base")
    assert list(out.iterdir()) == []
