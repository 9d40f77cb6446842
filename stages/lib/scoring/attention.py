"""One attention kernel for all batches of one shape, whatever padding they contain.

transformers inspects every batch's mask and uses a faster kernel if nothing is padded. With that, a row's bits would
depend on its neighbours, and on a GPU the host would wait for every batch in order to inspect it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def causal(**arguments: Any) -> torch.Tensor | None:
    """Mask only the future: padding is on the right, where no token of the row looks."""
    mask: torch.Tensor | None = sdpa_mask(**arguments | {"attention_mask": None})
    return mask


def padding_mask(**arguments: Any) -> torch.Tensor:
    """Return a mask even if there is no padding."""
    never = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: torch.Tensor = sdpa_mask(**arguments | never)
    return mask


for mask in (causal, padding_mask):
    AttentionInterface.register(mask.__name__, sdpa_attention_forward)
    AttentionMaskInterface.register(mask.__name__, mask)


@contextmanager
def one_kernel(model: PreTrainedModel, mask: str) -> Iterator[None]:
    """Replace sdpa attention with `causal` or `padding_mask`; a model that does not use sdpa is left as it is."""
    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    model.set_attn_implementation(mask)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
