"""LoRA adapters and 4-bit bases: load, attach, merge.

LoRA: Hu et al. 2021, arXiv 2106.09685. On 4-bit weights (nf4, the scales quantized too): Dettmers et al. 2023,
arXiv 2305.14314.
"""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages.lib.core.artifacts import read_json, remove
from stages.lib.core.errors import Stop
from stages.lib.core.params import Positive, Section, Share
from stages.lib.models.loading import check_folder, start_torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

log = logging.getLogger("stages")
SETTINGS = "adapter_config.json"
"""The file by which the folder of an adapter is known."""
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Adapter(Section):
    r: Positive
    alpha: Positive
    dropout: Share
    modules: Annotated[list[str], Field(min_length=1)]
    """Which linear layers get one, by the end of their names: query_key_value, dense, ... in GPT-NeoX."""
    merge: bool
    """Whether models/<arm> holds whole weights, the adapter merged into them, or the adapter alone."""


class Form(Section):
    """How the weights of a network are held."""

    dtype: Literal["fp32", "bf16", "fp16"]
    quantize: Literal["nf4"] | None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None
    """None: what transformers chooses for the model."""


def load(folder: Path, base: Path, form: Form, threads: int) -> "PreTrainedModel":
    """Return the causal LM of a folder, in eval mode; of an adapter's folder, the base with the adapter in it."""
    if (folder / SETTINGS).is_file():
        with_adapter: PreTrainedModel = load_adapter(folder, base, form, threads).get_base_model()
        return with_adapter
    import torch
    from transformers import AutoModelForCausalLM

    device = start_torch(threads)
    check_folder(folder)
    dtype = getattr(torch, TORCH_NAMES[form.dtype])
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": form.attn_implementation}
    if form.quantize:
        options |= {"quantization_config": four_bits(dtype), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
    except (ImportError, ValueError) as error:
        raise Stop(f"{folder}: transformers cannot load it as the params say: {error}") from error
    parameters = sum(getattr(part, "ds_numel", part.numel()) for part in model.parameters())  # ZeRO-3 holds a share
    log.info("%s: %s parameters, %s, on %s", folder, f"{parameters:,}", form.quantize or form.dtype, device)
    return (model if form.quantize else model.to(device)).eval()


def load_adapter(folder: Path, base: Path, form: Form, threads: int) -> "PeftModel":
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise Stop(f"{folder}: it has {SETTINGS}, but no adapter_model.safetensors; run `dvc repro`")
    network = load(base, base, form, threads)
    return PeftModel.from_pretrained(network, str(folder), torch_device=start_torch(threads)).eval()


def require_bitsandbytes() -> None:
    if find_spec("bitsandbytes") is None:
        raise Stop("params.yaml: quantize: nf4 needs bitsandbytes; `pip install -c constraints.txt -e '.[4bit]'`")


def four_bits(dtype: Any) -> Any:
    require_bitsandbytes()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def attach(model: "PreTrainedModel", adapter: Adapter) -> Any:
    """Return the model with a new adapter, the only part of it that is trained."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    linear = [path for path, module in model.named_modules() if isinstance(module, (Linear, Conv1D))]
    missing = [name for name in adapter.modules if not any(has_name(path, name) for path in linear)]
    if missing:
        there = sorted({path.rsplit(".")[-1] for path in linear})
        raise Stop(
            f"params.yaml: train.adapter.modules: no {', '.join(missing)} in the model; it has {', '.join(there)}"
        )
    return get_peft_model(model, config)


def has_name(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def merge(folder: Path, base: Path, form: Form, threads: int) -> None:
    """Put whole weights in the place of the adapter that the folder holds."""
    merged: Any = load_adapter(folder, base, form, threads).merge_and_unload()
    for path in folder.glob("adapter_*"):
        remove(path)
    merged.save_pretrained(folder)


def tidy(folder: Path) -> None:
    """Write an adapter's settings in one order, for peft keeps names in sets, and drop its empty model card."""
    settings = read_json(folder / SETTINGS)
    sets = {name: sorted(value) for name, value in settings.items() if isinstance(value, list)}
    text = json.dumps(settings | sets, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")
    remove(folder / "README.md")
