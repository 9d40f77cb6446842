"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685): attach one to a model, load it, merge it into the weights.

The base model may be in 4 bits (QLoRA: Dettmers et al. 2023, arXiv 2305.14314).
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.lib.core.artifacts import read_json, remove
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section, Share
from stages.lib.models.loading import LoadConfig, listed, load_model, start_torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

log = logging.getLogger("stages")
SETTINGS = "adapter_config.json"
"""A folder with this file contains an adapter."""
WEIGHTS = "adapter_model.safetensors"


class Adapter(Section):
    r: Positive
    """Rank of the two matrices."""
    alpha: Positive
    """Their product is scaled by alpha / r."""
    dropout: Share
    modules: Annotated[list[str], Field(min_length=1)]
    """The linear layers to adapt, by the last part of their names: query_key_value, dense, ... in GPT-NeoX."""
    merge: bool
    """Whether models/<arm> has full weights with the adapter merged into them, or the adapter only."""


def load_network(folder: Path, base: Path, config: LoadConfig, threads: int) -> "PreTrainedModel":
    """Return the causal LM in `folder`, in eval mode; if `folder` has an adapter, the base model with that adapter."""
    if not (folder / SETTINGS).is_file():
        return load_model(folder, config, threads)
    with_adapter: PreTrainedModel = load_adapter(folder, base, config, threads).get_base_model()
    return with_adapter


def load_adapter(folder: Path, base: Path, config: LoadConfig, threads: int) -> "PeftModel":
    from peft import PeftModel

    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: it has {SETTINGS}, but no {WEIGHTS}; run `dvc repro`")
    network = load_model(base, config, threads)
    try:
        model = PeftModel.from_pretrained(network, str(folder), torch_device=start_torch(threads))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(f"{folder}: the adapter does not fit {base}: {error}; run `dvc repro`") from error
    check_adapter(folder, base, model)
    return model.eval()


def check_adapter(folder: Path, base: Path, model: "PeftModel") -> None:
    """Raise UserError unless `folder` has exactly the adapter's weights: peft fills and drops without an error."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "np") as file:
        saved = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if wanted - saved:
        raise UserError(f"{folder}: the adapter lacks {listed(wanted - saved)}; run `dvc repro`")
    if saved - wanted:
        raise UserError(
            f"{folder}: the adapter has {listed(saved - wanted)}, which {base} does not have; it was trained on "
            "another base: run `dvc repro`"
        )


def attach(model: "PreTrainedModel", adapter: Adapter, section: str = "train") -> Any:
    """Return the model with a new adapter; only the adapter is trained. `section` of params has the adapter."""
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
        found = sorted({path.rsplit(".")[-1] for path in linear})
        raise UserError(
            f"params.yaml: {section}.adapter.modules: no {', '.join(missing)} in the model; it has {', '.join(found)}"
        )
    return get_peft_model(model, config)


def has_name(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def merge_adapter(folder: Path, base: Path, config: LoadConfig, threads: int) -> None:
    """Replace the adapter in `folder` with the full weights of the base model, the adapter merged into them."""
    merged: Any = load_adapter(folder, base, config, threads).merge_and_unload()
    for path in folder.glob("adapter_*"):
        remove(path)
    merged.save_pretrained(folder)


def normalise_adapter_config(folder: Path) -> None:
    """Sort the lists in adapter_config.json and remove the empty model card.

    peft keeps names in sets, so it writes them in a different order each time.
    """
    settings = read_json(folder / SETTINGS)
    lists = {name: sorted(value) for name, value in settings.items() if isinstance(value, list)}
    text = json.dumps(settings | lists, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")
    remove(folder / "README.md")
