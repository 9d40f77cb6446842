"""Count a model's parameters, from which the cost of using it follows.

models/hub/<role> -> models/hub/<role>.json
"""

import json
from math import prod
from pathlib import Path

from stages.lib.core.artifacts import write_json
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.models.flops import Size
from stages.lib.models.loading import check_folder

QUANT_STATE = ".quant_state.bitsandbytes__"
"""What follows a weight's name in the name of the tensor with the JSON that describes its 4 bits."""


class Params(Section):
    pass


def model_size(_params: Params, role: str, model: Path, model_json: Path) -> None:
    from transformers import AutoConfig

    check_folder(model)
    config, parameters = AutoConfig.from_pretrained(model), count_parameters(model)
    table = config.vocab_size * getattr(config, "embedding_size", config.hidden_size)  # ELECTRA has a narrower table
    tied_head = table if role != "encoder" and config.tie_word_embeddings else 0  # the table is the output head too
    found = Size(
        parameters=parameters,
        multiplied=parameters - table + tied_head,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
    )
    write_json(model_json, found.model_dump())


def count_parameters(model: Path) -> int:
    """Return the number of floating-point values in the safetensors; reads only their headers.

    Tensors of other types are attention masks that older GPT-NeoX models saved with their weights. A weight that was
    saved in 4 bits counts as many values as it had before, and what belongs to it (x.weight.absmax, ...) none.
    """
    from safetensors import safe_open

    floats: dict[str, int] = {}
    packed: dict[str, int] = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                values = tensors.get_slice(name)
                weight, is_state, _ = name.partition(QUANT_STATE)
                if is_state:
                    packed[weight] = prod(json.loads(bytes(tensors.get_tensor(name)))["shape"])
                elif "F" in values.get_dtype():
                    floats[name] = prod(values.get_shape())
    whole = [size for name, size in floats.items() if not {name, name.rpartition(".")[0]} & packed.keys()]
    return sum(whole) + sum(packed.values())


if __name__ == "__main__":
    run(model_size, Params)
