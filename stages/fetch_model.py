"""Bring one model: the scorer, the encoder or the base.

    the hub | a folder | data/pretrain (a small one is trained here) -> models/hub/<role>

Only safetensors: a hub repository that has nothing but pytorch_model.bin is converted, read with weights_only.
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
from stages.lib.models.loading import check_folder, start_torch
from stages.lib.models.toy import Small

log = logging.getLogger("stages")
FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]


class Model(Section):
    from_: Literal["hub", "folder", "small"] = Field(alias="from")
    inputs: str
    """What it is made of: a folder of text (`small`), a model folder (`folder`), any folder in git (`hub`)."""
    name: str | None
    """Repository of the hub."""
    revision: str | None
    """Commit hash, for the hub."""
    small: Small | None

    @model_validator(mode="after")
    def small_has_settings(self) -> "Model":
        if (self.from_ == "small") != (self.small is not None):
            raise ValueError("`small` settings go with `from: small`, and only with it")
        return self


class Params(Section):
    threads: Positive
    fetch_model: dict[Literal["scorer", "encoder", "base"], Model]


def fetch_model(params: Params, role: str, inputs: Path, model: Path) -> None:
    settings = params.fetch_model[role]  # type: ignore[index]
    start_torch(params.threads)
    with atomic(model) as scratch:
        if settings.small is not None:
            from stages.lib.models.toy_training import make_small

            make_small(role, inputs, settings.small, scratch)
        elif settings.from_ == "folder":
            copy_model(inputs, scratch)
        else:
            fetch_hub_model(role, settings, scratch)
        check_folder(scratch)


def copy_model(folder: Path, out: Path) -> None:
    """Copy configs, tokenizer and safetensors; nothing pickled."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; fetch_model.*.inputs names the model's")
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
    """Write a folder of pytorch_model.bin as safetensors; transformers reads it with weights_only=True."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    loader = AutoModel if role == "encoder" else AutoModelForCausalLM
    try:
        loader.from_pretrained(local, dtype="auto", use_safetensors=False).save_pretrained(out)
    except (OSError, ValueError, UnpicklingError) as error:
        raise UserError(f"{local}: pytorch_model.bin could not be read as weights alone: {error}") from error
    AutoTokenizer.from_pretrained(local).save_pretrained(out)
    log.info("%s: converted to safetensors", role)


if __name__ == "__main__":
    run(fetch_model, Params, offline=False)
