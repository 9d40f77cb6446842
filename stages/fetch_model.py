"""Get one model: the scorer, the encoder or the base.

    the hub | a folder | data/pretrain (trains a toy model here) -> models/hub/<role>

Only safetensors are kept. If a hub repository has pytorch_model.bin only, it is read with weights_only and converted.
"""

import logging
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

from pydantic import Field, model_validator

from stages.lib.core.artifacts import atomic
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section
from stages.lib.core.runner import run
from stages.lib.models.hub import snapshot
from stages.lib.models.loading import POOLER, REPORT, check_folder, check_weights, start_torch
from stages.lib.models.toy import Small

log = logging.getLogger("stages")
FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]


class Model(Section):
    from_: Literal["hub", "folder", "small"] = Field(alias="from")
    inputs: str
    """Folder to read: text to train on (`small`), a model (`folder`), or any folder in git (`hub` reads none)."""
    name: str | None
    """Hub repository; null without `from: hub`."""
    revision: str | None
    """Its commit hash."""
    small: Small | None
    """Size and training of a toy model."""

    @model_validator(mode="after")
    def small_has_settings(self) -> "Model":
        if (self.from_ == "small") != (self.small is not None):
            raise ValueError("`small` needs settings if `from` is `small`, and must be null otherwise")
        return self


class Params(Section):
    threads: Positive
    portable: bool = False
    fetch_model: dict[Literal["scorer", "encoder", "base"], Model]


def fetch_model(params: Params, role: str, inputs: Path, model: Path) -> None:
    settings = params.fetch_model[role]  # type: ignore[index]
    start_torch(params.threads)
    with atomic(model) as scratch:
        if settings.small is not None:
            from stages.lib.models.toy_training import train_toy

            train_toy(role, inputs, settings.small, scratch)
        elif settings.from_ == "folder":
            copy_model(inputs, scratch)
        else:
            fetch_hub_model(role, settings, scratch)
        check_folder(scratch)


def copy_model(folder: Path, out: Path) -> None:
    """Copy configs, tokenizer and safetensors, but nothing pickled."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set fetch_model.*.inputs to the model's folder")
    check_folder(folder)
    out.mkdir()
    for path in sorted(folder.iterdir()):
        if any(path.match(pattern) for pattern in FILES):
            shutil.copyfile(path, out / path.name)


def fetch_hub_model(role: str, settings: Model, out: Path) -> None:
    where = f"fetch_model.{role}"
    local = snapshot("model", where, settings.name, settings.revision, allow_patterns=FILES)
    if any(local.glob("*.safetensors")):
        copy_model(local, out)
        return
    bins = [*FILES, "pytorch_model*.bin*"]
    local = snapshot("model", where, settings.name, settings.revision, allow_patterns=bins)
    convert(role, local, out)


def convert(role: str, local: Path, out: Path) -> None:
    """Write a model saved as pytorch_model.bin as safetensors; transformers reads it with weights_only=True.

    An encoder's missing pooler stays missing, because transformers would save random numbers in its place.
    """
    import transformers
    from transformers import AutoTokenizer

    auto, unused = ("AutoModel", POOLER) if role == "encoder" else ("AutoModelForCausalLM", ())
    try:
        model, found = getattr(transformers, auto).from_pretrained(local, dtype="auto", use_safetensors=False, **REPORT)
    except (OSError, ValueError, UnpicklingError) as error:
        raise UserError(f"{local}: pytorch_model.bin could not be read with weights_only: {error}") from error
    check_weights(local, model, found, auto, unused)
    kept = {name: weight for name, weight in model.state_dict().items() if name not in found["missing_keys"]}
    model.save_pretrained(out, state_dict=kept)
    AutoTokenizer.from_pretrained(local).save_pretrained(out)
    log.info("%s: converted to safetensors", role)


if __name__ == "__main__":
    run(fetch_model, Params, offline=False)
