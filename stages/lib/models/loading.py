"""Load models and tokenizers from local folders, onto the GPU if there is one."""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.lib.core.artifacts import read_json
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("stages")
SLICE = 10_000
"""Texts per call of the tokenizer."""
Dtype = Literal["fp32", "bf16"]
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
OLD_BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|inv_freq$")
"""Attention masks and rotary frequencies, which older versions of transformers saved with the weights."""


CAUSAL_LM = "AutoModelForCausalLM"
REPORT = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained` that make it return, with the model, which weights it did not find where and how."""
POOLER = ("pooler.",)
"""How the weights begin that an encoder needs only for `pooling: pooler`."""
MOST_NAMES = 6
"""Of weights in an error."""


class LoadConfig(Section):
    """How to hold a model's weights in memory; weights that were saved in 4 bits stay as they are, whatever it says."""

    dtype: Literal["fp32", "bf16", "fp16"]
    quantize: Literal["nf4"] | None = None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """None: what transformers chooses for the model."""


def start_torch(threads: int) -> str:
    """Set torch's CPU threads, because their number changes the last bits of every sum; return the device."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
        return device
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # without it, deepspeed warns that it found no accelerator
    return "cpu"


def check_folder(folder: Path) -> None:
    """Raise UserError unless the folder contains config.json and safetensors of a kind that can be read."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model, config.json is missing; expected a folder written by save_pretrained")
    if not list(folder.glob("*.safetensors")):
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise UserError(
            f"{folder}: no *.safetensors, found {found}; pickled weights are never loaded: "
            "convert the folder with save_pretrained, or fetch the model with `from: hub`"
        )
    saved_in_4_bits(folder)


def saved_in_4_bits(folder: Path) -> bool:
    """Return whether the weights in the folder are in 4 bits already, by bitsandbytes.

    Raises UserError if they are quantized in any other way.
    """
    if not (folder / "config.json").is_file():  # an adapter
        return False
    saved = read_json(folder / "config.json").get("quantization_config")
    if not saved:
        return False
    if saved.get("quant_method") == "bitsandbytes" and saved.get("load_in_4bit"):
        return True
    raise UserError(
        f"{folder}: its weights are quantized by {saved.get('quant_method')}, but only 4 bits of bitsandbytes (nf4, "
        "fp4) are read; use the model in full precision, and quantize: nf4"
    )


def held_in_4_bits(config: LoadConfig, *folders: Path) -> bool:
    """Return whether a model of these folders has 4 bits in memory, because of `config` or because it was saved so.

    Raises UserError if both are the case, or if bitsandbytes is missing.
    """
    saved = [folder for folder in folders if saved_in_4_bits(folder)]
    if saved and config.quantize:
        raise UserError(
            f"params.yaml: quantize: {config.quantize}: {saved[0]} is already in 4 bits; set quantize: null"
        )
    if saved:
        require_bitsandbytes(f"{saved[0]}: a model that was saved in 4 bits")
    elif config.quantize:
        require_bitsandbytes(f"params.yaml: quantize: {config.quantize}")
    return bool(saved or config.quantize)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer that transformers can load: {error}") from error
    names = ["tokenizer.json", *tokenizer.vocab_files_names.values()]
    if not any((folder / name).is_file() for name in names):  # transformers would silently create an empty one
        raise UserError(f"{folder}: no tokenizer; expected one of {', '.join(sorted(set(names)))} beside the model")
    return tokenizer


def load_model(
    folder: Path,
    config: LoadConfig,
    threads: int,
    auto: str = CAUSAL_LM,
    unused: tuple[str, ...] = (),
) -> "PreTrainedModel":
    """Return the model in `folder`, in eval mode, on the GPU if there is one; `auto` names its Auto class.

    Weights whose names begin with one of `unused` may be missing. Raises UserError if the folder has no safetensors, if
    transformers cannot load it as `config` asks, or if its weights are not those of the model (`check_weights`).
    """
    import torch
    import transformers

    device = start_torch(threads)
    check_folder(folder)
    in_4_bits = held_in_4_bits(config, folder)
    dtype = getattr(torch, TORCH_NAMES[config.dtype])
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attn_implementation}
    if in_4_bits:
        options["device_map"] = {"": device}
        options |= {"quantization_config": nf4_config(dtype)} if config.quantize else {"dtype": "auto"}
    try:
        model, found = getattr(transformers, auto).from_pretrained(folder, use_safetensors=True, **REPORT, **options)
    except (ImportError, ValueError) as error:
        raise UserError(f"{folder}: transformers cannot load it as params.yaml asks: {error}") from error
    check_weights(folder, model, found, auto, unused)
    if auto == CAUSAL_LM and type(model.config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        check_decoder(folder, model)
    # under ZeRO-3 each process has a part of every tensor, and `ds_numel` is the size of the whole
    count = sum(getattr(tensor, "ds_numel", tensor.numel()) for tensor in model.parameters())
    held = config.quantize or ("4 bits as saved" if in_4_bits else config.dtype)
    log.info("%s: %s parameters, %s, on %s", folder, f"{count:,}", held, device)
    loaded: PreTrainedModel = (model if in_4_bits else model.to(device)).eval()
    return loaded


def check_weights(
    folder: Path, model: "PreTrainedModel", found: dict[str, Any], auto: str, unused: tuple[str, ...] = ()
) -> None:
    """Raise UserError unless `folder` has every weight of the model and, for a causal LM, no other weight.

    `found` is what `from_pretrained` reports (REPORT). transformers fills what is missing or has another shape with
    random numbers. Tied weights are not missing. An encoder may come from a model with a head; a causal LM may not: a
    classifier whose embeddings are tied lacks nothing that a language model has.
    """
    name, saved = type(model).__name__, " or ".join(model.config.architectures or ["model without a name"])
    hint = f"it was saved from a {saved}, and is loaded with {auto}; use a checkpoint of a {name}"
    shapes = [
        f"{key} ({size(ours)} in the file, {size(wanted)} by config.json)"
        for key, ours, wanted in found["mismatched_keys"]
    ]
    if shapes:
        raise UserError(f"{folder}: other shapes than {name} has: {listed(shapes)}; {hint}")
    missing = [key for key in found["missing_keys"] if not key.startswith(unused)]
    if missing:
        if all(key.startswith(POOLER) for key in missing):
            hint = "set embed.pooling to mean or cls, or use an encoder that was saved with its pooler"
        raise UserError(f"{folder}: lacks {listed(missing)}, which would be random numbers in {name}; {hint}")
    others = [key for key in found["unexpected_keys"] if not OLD_BUFFERS.search(key)]
    if others and auto == CAUSAL_LM:
        raise UserError(f"{folder}: has {listed(others)}, which {name} does not have; {hint}")


def check_decoder(folder: Path, model: "PreTrainedModel") -> None:
    """Raise UserError for BERT and its like, unless the config makes them decoders: every token would see itself."""
    if not getattr(model.config, "is_decoder", False):
        raise UserError(f"{folder}: {type(model).__name__} sees the tokens that it should predict; use a causal LM")


def size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def listed(names: Iterable[str]) -> str:
    """Return the names, sorted; of many, the first."""
    ordered = sorted(names)
    more = f", ... ({len(ordered)} in all)" if len(ordered) > MOST_NAMES else ""
    return ", ".join(ordered[:MOST_NAMES]) + more


def require_bitsandbytes(what: str) -> None:
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{what} needs bitsandbytes; `pip install -c constraints.txt -e '.[4bit]'`")


def nf4_config(dtype: Any) -> Any:
    """Return the settings of nf4 with double quantization (Dettmers et al. 2023, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def max_positions(model: "PreTrainedModel") -> int | None:
    """Return the length in tokens of the longest input that the model accepts, or None if it has no limit."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # RoBERTa's first position is the one after this
    return limit if limit is None or padding is None else limit - padding - 1


def check_length(model: "PreTrainedModel", tokens: int, where: str) -> None:
    """Raise UserError if `tokens` is more than the model has positions; `where` names the params entry."""
    limit = max_positions(model)
    if limit is not None and tokens > limit:
        raise UserError(f"params.yaml: {where}: {tokens} tokens, but the model has {limit} positions")


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], **options: Any) -> list[NDArray[np.int32]]:
    """Return the token ids of every text.

    Works in slices, because the lists that the tokenizer returns take many times the memory of the arrays.
    """
    ids: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), SLICE):
        encoded = tokenizer(list(texts[start : start + SLICE]), truncation=True, return_attention_mask=False, **options)
        ids += [np.array(row, dtype=np.int32) for row in encoded["input_ids"]]
    return ids
