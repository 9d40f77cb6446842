"""Models of random weights."""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_models(auto: Any, config: PretrainedConfig) -> dict[str, PreTrainedModel]:
    """Return a model in every dtype, of the same weights, made on the device.

    Not `model.to(bfloat16)`: it would round the rotary frequencies too, which a model loaded in bf16 keeps in fp32.
    """
    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        models = {name: auto.from_config(config, dtype=dtype).eval() for name, dtype in DTYPES.items()}
    models["bf16"].load_state_dict(models["fp32"].state_dict())
    return models
