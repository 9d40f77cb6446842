"""Models with random weights."""

from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Shape(NamedTuple):
    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int


def configuration(kind: Any, shape: Shape, **more: Any) -> PretrainedConfig:
    """Return the configuration of a transformer of this kind and shape."""
    config: PretrainedConfig = kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.positions,
        **more,
    )
    return config


def random_models(auto: Any, config: PretrainedConfig) -> dict[str, PreTrainedModel]:
    """Return a model per dtype, on the device, all with the same weights.

    Not by `model.to(bfloat16)`, which also rounds the rotary frequencies; a model loaded in bf16 keeps them in fp32.
    """
    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        models = {name: auto.from_config(config, dtype=dtype).eval() for name, dtype in DTYPES.items()}
    models["bf16"].load_state_dict(models["fp32"].state_dict())
    return models
